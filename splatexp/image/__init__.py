"""Images made of 2D Gaussians: fitting, a file format, and a comparison with other image codecs."""
