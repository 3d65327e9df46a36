"""`python -m vitprune` is `vitprune`."""

from vitprune.cli import main

main()
