"""One file per kind of image source."""
