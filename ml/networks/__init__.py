"""Parts of networks in Keras, and the same parts in ONNX."""
