"""Benchmarks: ratios within one run, recorded with the machine and the command that reproduces them."""
