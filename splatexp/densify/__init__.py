"""Density control: how many Gaussians there are, where new ones are born and which ones are pruned."""

from splatexp.densify.context import Context
from splatexp.densify.opacity_policy import OpacityDecay, OpacityReset
from splatexp.densify.rules import Rule
from splatexp.densify.strategy import NoDensification, RuleStrategy, Strategy
from splatexp.densify.survey import Survey

__all__ = [
    "Context",
    "NoDensification",
    "OpacityDecay",
    "OpacityReset",
    "Rule",
    "RuleStrategy",
    "Strategy",
    "Survey",
]
