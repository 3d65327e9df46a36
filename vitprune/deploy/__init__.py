"""The finished model at work: ONNX files, prediction, latency."""
