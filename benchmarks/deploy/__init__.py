"""Our files beside those of a runtime's own quantizer, in that runtime."""
