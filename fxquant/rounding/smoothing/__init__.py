"""Which channels of a layer's input to rescale, so that one scale rounds all of them well."""
