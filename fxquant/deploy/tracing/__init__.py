"""From a model to ONNX by tracing one call of it."""
