"""splatexp: the experiment framework for Gaussian splatting."""

__version__ = "0.2.0.dev0"
