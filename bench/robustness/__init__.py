"""Benches that check what must stay true: after a change, and when something goes wrong."""
