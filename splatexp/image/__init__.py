"""Pictures made of Gaussians of the plane."""
