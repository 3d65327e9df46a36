"""Mending a model whose units are gone, from unlabelled images."""
