"""What criteria say of attention: which heads and dimensions of heads matter."""
