"""How quantized models are judged against float ones."""
