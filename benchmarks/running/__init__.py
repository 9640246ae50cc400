"""How benchmarks are run: allocator, environments, clocks."""
