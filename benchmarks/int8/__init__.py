"""Benchmarks of integer models: speed, parity, sizes."""
