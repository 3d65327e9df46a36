"""Criteria from statistics of the hidden units."""
