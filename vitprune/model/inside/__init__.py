"""Looking inside a model while it runs: hooks, blocks in two halves, moments of hidden units."""
