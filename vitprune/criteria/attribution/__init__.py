"""Criteria from gradients of single images: neuron paths, gates, Fisher information."""
