"""Learned roundings of residual blocks, and the scales of their activations."""
