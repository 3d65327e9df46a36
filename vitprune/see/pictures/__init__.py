"""Pictures of units: where in an image they fire, what they fire for over the blocks, and images made for them."""
