"""The phases of a job on one host, in their order."""

import enum


class HostPhase(enum.Enum):
    """What a host is doing. The values are the names in timelines, reports and summaries."""

    RESOLVE = "resolve"
    """The job description is read and checked."""
    FETCH = "fetch"
    """The user's code is brought into the code directory."""
    INSTALL = "install"
    """The user's requirements are installed."""
    JOIN = "join"
    """This host is ready and waits for the others."""
    ROLES = "roles"
    """The kvstore processes and the worker start."""
    FIRST_STEP = "first step"
    """The script runs, up to its first step. Part of ``TRAIN`` where no server can tell."""
    TRAIN = "train"
    """The script runs."""
    CLEAR = "clear"
    """An attempt has failed: its processes are ended, and another one follows."""
    HOLD = "hold"
    """The script has finished here, and runs on another host."""
    DRAIN = "drain"
    """All scripts have finished, and the other processes leave."""
    END = "end"
    """The job's outcome is known, and what still runs is ended."""
