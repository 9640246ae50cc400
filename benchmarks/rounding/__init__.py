"""Benchmarks of learned roundings."""
