"""Losses: the photometric loss, and the regularizers that are added to it."""
