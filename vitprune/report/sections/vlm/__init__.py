"""The page of a pruned vision-language model: its exam, its units' types, a few of them explained, how to load it."""
