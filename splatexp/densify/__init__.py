"""Density control: which Gaussians are born and which go."""

from splatexp.densify.adc import ADC
from splatexp.densify.rules import Reset, Rule
from splatexp.densify.strategy import Fixed, Ruled, Strategy

__all__ = ["ADC", "Fixed", "Reset", "Rule", "Ruled", "Strategy"]
