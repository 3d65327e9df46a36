"""The command line: verbs on a recipe, verbs on files, lists."""
