"""A file of weights into a model: its size, the sets in it, the one that fits, what to write where none does."""
