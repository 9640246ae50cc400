"""Data sets and trained weights that the benchmarks read."""
