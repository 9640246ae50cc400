"""Networks that the benchmarks build or train."""
