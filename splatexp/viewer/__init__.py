"""The viewer: a web page that shows a run while it trains, and a finished run afterwards.

This package imports the settings alone; a run imports the rest when it is watched.
"""

from splatexp.viewer.settings import StepCallback, ViewerSettings

__all__ = ["StepCallback", "ViewerSettings"]
