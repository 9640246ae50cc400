"""From the simulation to integer kernels, or to operators that other tools know."""
