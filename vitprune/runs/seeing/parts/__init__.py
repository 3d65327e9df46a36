"""The parts of `see`, one file each; their rows are in `table.py`."""
