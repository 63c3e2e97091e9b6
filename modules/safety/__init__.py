"""Finds pictures that are not to be given out."""
