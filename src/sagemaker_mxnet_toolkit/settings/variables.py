"""The variables of this project that are not settings: the one list of them.

A variable with our prefix that is neither a setting nor in this list is a misspelled setting.
"""

PREFIX = "SAGEMAKER_MXNET_"
"""What the names of all variables of this project begin with."""

COMPONENT_PREFIXES = ("SAGEMAKER_MXNET_SERVING_",)
"""Prefixes of the settings of one package: the other packages leave such variables alone."""

CONTROL_FD = "SAGEMAKER_MXNET_CONTROL_FD"
"""File descriptor of the control channel's listening socket, from ``local`` to the first host."""

RESTART_COUNT = "SAGEMAKER_MXNET_RESTART_COUNT"
"""How often the job was restarted; for the user's script."""

RESUME = "SAGEMAKER_MXNET_RESUME"
"""Name of the checkpoint that a job goes on from, or ``FRESH``, the same on all hosts. Without it
the first host's script takes its newest whole one."""

NO_CHECKPOINTS = "SAGEMAKER_MXNET_NO_CHECKPOINTS"
"""Why scripts of this job can have no checkpoints; set where that is so."""

FRESH = "none"
"""Value of ``RESUME`` for a fresh start."""

NOT_SETTINGS = frozenset(
    {
        CONTROL_FD,
        # Read by ``compatibility`` in every Python process, which must not import this module.
        "SAGEMAKER_MXNET_COMPATIBILITY",
        # Marks the processes of one job for the watchdog.
        "SAGEMAKER_MXNET_JOB_ID",
        # The pipe on which a child process reports.
        "SAGEMAKER_MXNET_REPORT_FD",
        # For the user's script and the helpers that it calls, which read the environment.
        NO_CHECKPOINTS,
        RESTART_COUNT,
        RESUME,
        # Read where MXNet is imported, in any Python process.
        "SAGEMAKER_MXNET_IMPORT_CACHE",
    }
)
"""Variables that processes of this project set for each other, or that are read before a job."""
