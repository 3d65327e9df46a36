"""Where it hurt: images, classes, confusions, calibration."""
