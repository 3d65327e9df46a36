"""Reading a report's record and the files beside it."""
