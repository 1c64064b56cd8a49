"""Alternatives to the codec's layers and scalar quantization, for comparison."""
