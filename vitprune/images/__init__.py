"""Labelled images: where they come from, how they are decoded, prepared and split."""
