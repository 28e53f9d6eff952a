"""What can be wrong with a checkpoint."""


class CheckpointError(Exception):
    """A checkpoint cannot be written, or there is none that training can go on from."""


class DamagedError(CheckpointError):
    """A checkpoint file is not what was written. The text reads well after the file's name."""
