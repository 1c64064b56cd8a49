"""Fitting 2D Gaussians to an image: initialization, optimizer, refinement, quantization and rate control."""
