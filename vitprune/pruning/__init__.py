"""From scores and a budget to a slim model."""
