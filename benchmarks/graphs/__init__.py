"""Models drawn at random, and what must hold of each of them."""
