"""Code that training and serving share. It imports neither of them."""

__version__ = "5.0.0"
