"""A Vision Transformer, whatever its family: what can be removed, what the head reads, how it is loaded."""
