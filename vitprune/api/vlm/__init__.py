"""The road of a vision-language model: a recipe to types, a smaller model and its exam."""
