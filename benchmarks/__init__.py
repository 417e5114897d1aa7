"""Benchmarks: masks, timing and optional peers. Not installed with the package."""
