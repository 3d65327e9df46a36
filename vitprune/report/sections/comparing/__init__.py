"""How the exported model compares: with other criteria and budgets, over splits, and over a frontier."""
