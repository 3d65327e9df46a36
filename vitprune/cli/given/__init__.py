"""What is given on the command line: groups of options, and a recipe made of flags."""
