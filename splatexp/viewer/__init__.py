"""The page in the browser that shows a run: its settings; all else is imported where a run is watched."""

from splatexp.viewer.settings import Between, Viewer

__all__ = ["Between", "Viewer"]
