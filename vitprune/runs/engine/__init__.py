"""Who computes the parts of a heavy piece of work; the result is the same bits whoever it was."""
