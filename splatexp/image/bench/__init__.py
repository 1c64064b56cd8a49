"""Comparison of .gsi with JPEG, WebP and AVIF over a folder of images."""
