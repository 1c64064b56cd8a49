"""Cameras of the training views: as given, or learned beside the Gaussians."""

from splatexp.poses.learned import FOCAL, POSE, LearnedPoses, Poses, Rig
from splatexp.poses.parametrizations import SE3, Fixed, Orbit, Rot6d

__all__ = ["FOCAL", "POSE", "SE3", "Fixed", "LearnedPoses", "Orbit", "Poses", "Rig", "Rot6d"]
