"""Cameras of the training views: as given, or learned beside the Gaussians."""

from splatexp.poses.parametrizations import SE3, Fixed, Orbit, Rot6d
from splatexp.poses.rig import Rig
from splatexp.poses.settings import FOCAL, POSE, Learned, Poses

__all__ = ["FOCAL", "POSE", "SE3", "Fixed", "Learned", "Orbit", "Poses", "Rig", "Rot6d"]
