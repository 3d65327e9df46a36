"""The parts `names` and `simulator`: what units are called, and whether that tells what they do."""
