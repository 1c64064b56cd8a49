"""Density control: which Gaussians are born and which go."""

from splatexp.densify.opacity_policy import Fade, Reset
from splatexp.densify.rules import Rule
from splatexp.densify.strategy import Context, Fixed, Ruled, Strategy
from splatexp.densify.survey import Survey

__all__ = ["Context", "Fade", "Fixed", "Reset", "Rule", "Ruled", "Strategy", "Survey"]
