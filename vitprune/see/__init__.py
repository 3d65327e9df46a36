"""What units do: how often classes use them, which classes are alike."""
