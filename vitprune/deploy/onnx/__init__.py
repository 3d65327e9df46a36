"""Writing ONNX files: export, precisions, graph rewrites."""
