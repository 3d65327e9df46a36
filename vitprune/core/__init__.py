"""What everything stands on: errors, files, memory, progress, least squares, the machine."""
