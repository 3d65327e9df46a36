"""The atlas: one page with every unit of a model, offline, its pictures in a folder beside it."""
