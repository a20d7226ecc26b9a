"""Prediction, heat maps and the check "not a head CT", with ONNX Runtime only."""
