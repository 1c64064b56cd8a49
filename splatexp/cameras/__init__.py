"""Cameras: the pinhole, rigid motions, similarities between camera sets, paths for turntables."""
