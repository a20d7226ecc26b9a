"""Building blocks of networks in Keras, and their ONNX equivalents."""
