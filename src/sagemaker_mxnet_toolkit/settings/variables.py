"""Environment variables of this project that are not settings.

A variable with this prefix that is neither a setting nor listed here is a misspelled setting.
"""

PREFIX = "SAGEMAKER_MXNET_"
"""Prefix of all variables of this project."""

COMPONENT_PREFIXES = ("SAGEMAKER_MXNET_SERVING_",)
"""Prefixes of settings of one package, which other packages ignore."""

COMPATIBILITY = "SAGEMAKER_MXNET_COMPATIBILITY"
"""``0`` disables ``compatibility``, in any Python process."""

IMPORT_CACHE = "SAGEMAKER_MXNET_IMPORT_CACHE"
"""``0`` disables the import cache of ``compatibility``, in any Python process."""

JOB_ID = "SAGEMAKER_MXNET_JOB_ID"
"""Identifies all processes of a job on a host; set by the supervisor and inherited."""

REPORT_FD = "SAGEMAKER_MXNET_REPORT_FD"
"""File descriptor of the pipe on which a child process reports, as a decimal number."""

CONTROL_FD = "SAGEMAKER_MXNET_CONTROL_FD"
"""File descriptor of the control channel's listening socket, from ``local`` to the first host."""

RANK_OUTPUT = "SAGEMAKER_MXNET_RANK_OUTPUT"
"""File descriptors from ``local`` for the output of Horovod's workers on a host: for each worker,
separated by commas, one for stdout and one for stderr."""

RESTART_COUNT = "SAGEMAKER_MXNET_RESTART_COUNT"
"""Number of restarts of the job, for the user's script."""

RESUME = "SAGEMAKER_MXNET_RESUME"
"""Name of the checkpoint that a job resumes from, or ``FRESH``, the same on all hosts. By default
the first host's script uses its newest valid one."""

VERIFIED = "SAGEMAKER_MXNET_VERIFIED"
"""Path of the checkpoint that the supervisor has verified, so that scripts need not do it."""

NO_CHECKPOINTS = "SAGEMAKER_MXNET_NO_CHECKPOINTS"
"""Why scripts of this job cannot use checkpoints; set only in this case."""

TERMINAL = "SAGEMAKER_MXNET_TERMINAL"
"""Path of the terminal of ``local``, for ``breakpoint()`` in a script."""

FRESH = "none"
"""Value of ``RESUME`` for a fresh start."""

NOT_SETTINGS = frozenset(
    {
        COMPATIBILITY,
        CONTROL_FD,
        IMPORT_CACHE,
        JOB_ID,
        NO_CHECKPOINTS,
        RANK_OUTPUT,
        REPORT_FD,
        RESTART_COUNT,
        RESUME,
        TERMINAL,
        VERIFIED,
    }
)
"""Variables that processes of this project set for each other, or that are not read by a job."""
