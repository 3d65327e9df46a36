"""The exam: logits on the test split and what is computed from them."""
