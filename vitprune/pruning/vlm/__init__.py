"""Vision-language models made smaller: what their units cost, which go, and the repair over image and text tokens."""
