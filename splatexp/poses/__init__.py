"""Cameras of the training views: as given, or learned beside the Gaussians."""

from splatexp.poses.kinds import SE3, Fixed, Orbit, Rot6d
from splatexp.poses.learned import FOCAL, POSE, Learned, Poses
from splatexp.poses.rig import Rig

__all__ = ["FOCAL", "POSE", "SE3", "Fixed", "Learned", "Orbit", "Poses", "Rig", "Rot6d"]
