"""What units are called, and whether the name tells what they do: names are claims, and each carries a score."""
