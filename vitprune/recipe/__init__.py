"""YAML to checked values."""
