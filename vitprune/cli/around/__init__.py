"""The verbs around a run: lists, what is installed, completion, handing a result on."""
