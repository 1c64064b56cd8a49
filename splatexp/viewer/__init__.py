"""The page in the browser that shows a run: its settings; all else is imported where a run is serve_viewer."""

from splatexp.viewer.settings import StepCallback, ViewerSettings

__all__ = ["StepCallback", "ViewerSettings"]
