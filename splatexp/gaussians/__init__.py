"""Gaussians as rows: parameters with their moments, the edits that move them, their geometry."""
