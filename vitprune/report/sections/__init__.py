"""The seven questions of a report, one file each, and the page made of them."""
