"""The bundled model and images, and the script that made the model."""
