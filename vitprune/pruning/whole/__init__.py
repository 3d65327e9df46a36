"""One budget for the whole model: what sizes cost in it, and which are taken."""
