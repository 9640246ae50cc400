"""Attention in plain operations, which can be quantized, in the place of PyTorch's modules."""
