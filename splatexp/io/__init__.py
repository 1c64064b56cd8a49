"""Files: atomic writing, images, figures, point clouds, plots."""
