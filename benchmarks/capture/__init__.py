"""Benchmarks of capture and of single passes."""
