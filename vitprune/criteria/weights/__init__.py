"""Criteria from the weights, or trained with them."""
