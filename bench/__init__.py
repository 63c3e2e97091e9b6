"""Benchmarks: every figure beside the plain alternative in the same run."""
