"""Trackers: destinations of the numbers that a run logs. An error in a tracker never ends the run."""

from splatexp.tracking.console import Console
from splatexp.tracking.csv_table import Csv
from splatexp.tracking.tensorboard import TensorBoard
from splatexp.tracking.tracker import Session, Tracker, Trackers
from splatexp.tracking.wandb import WandB

__all__ = ["Console", "Csv", "Session", "TensorBoard", "Tracker", "Trackers", "WandB"]
