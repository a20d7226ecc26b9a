"""Answers, heat maps and the check "not a head CT", on ONNX Runtime only."""
