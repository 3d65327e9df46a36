"""The shown language units of a vision-language model: what moves them, what they are called, how well it tells."""
