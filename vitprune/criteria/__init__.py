"""Which hidden units to keep: one file per method, and the table of all of them."""
