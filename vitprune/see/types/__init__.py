"""What a language unit of a vision-language model answers to: image tokens, text tokens, both, or neither that can be told."""
