"""Schedules: resolution, spherical harmonics and learning rates over the steps of a run."""
