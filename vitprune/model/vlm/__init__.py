"""Vision-language models of transformers: opened from a folder, their sites, their tokens, their pairs."""
