"""Benchmarks of clipping ranges and equalization."""
