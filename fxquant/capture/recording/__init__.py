"""fx's tracer, taught to know what each node stands for in an example."""
