"""What stages leave behind, as values."""
