"""A page to drop an image on, which the dense and the slim model answer side by side."""
