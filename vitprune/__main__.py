"""`python -m vitprune` is `vitprune`."""

from vitprune.cli.app import main

main()
