"""Benchmarks: ratios and figures, written with machine, seed and commit to `results/`."""
