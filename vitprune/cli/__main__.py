"""`python -m vitprune.cli` is `vitprune`."""

from vitprune.cli.app import main

main()
