"""splatexp: the experiment framework for Gaussian splatting."""

__version__ = "0.1.0"
