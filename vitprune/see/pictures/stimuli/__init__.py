"""Images made for units: what raises a unit most, and whether a model sees in them what the unit is said to write."""
