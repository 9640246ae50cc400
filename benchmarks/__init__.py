"""Scripts that measure fxquant; each prints what it measured."""
