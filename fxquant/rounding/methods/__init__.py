"""How a layer is learned from its rows: grouped tensors in, integers and scales out, no graph."""
