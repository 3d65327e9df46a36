"""What each stage does, one file each. A stage reads earlier stages' files and returns the files it made."""
