"""From a name, a folder or a file to a model, and back to a folder."""
