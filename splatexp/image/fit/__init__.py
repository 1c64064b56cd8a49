"""Fitting the Gaussians of an image: starts, optimizer, quantization, bit rate."""
