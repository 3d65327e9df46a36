"""An open run: its recipe, folder, model, images, classes."""
