"""What training and serving share. It knows neither of them, and imports nothing of theirs."""

__version__ = "5.0.0"
