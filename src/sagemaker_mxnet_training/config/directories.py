"""The directories of a job: its input channels, and those that it writes to.

Channels are not opened, since one in Pipe mode is a FIFO.
"""

import contextlib
import os
import re
from typing import Dict, Mapping, NamedTuple, Optional

from sagemaker_mxnet_toolkit.failure import ConfigurationError
from sagemaker_mxnet_toolkit.settings.sources import Found, Sources, match, non_empty
from sagemaker_mxnet_toolkit.settings.validation import Validator, matching
from sagemaker_mxnet_training.config.job import Job

CHANNELS_FILE = "inputdataconfig.json"
"""The configuration file that describes the channels."""

CHANNEL_NAME = re.compile(r"(?!\.+\Z)[A-Za-z0-9._-]{1,255}\Z")
"""The pattern of ChannelName (API reference, Channel)."""

_CHANNEL = matching(CHANNEL_NAME, "a channel name", "1 to 255 letters, digits, '.', '-' and '_'")


def read_channels(
    sources: Sources, inputs: Mapping[str, Found], data_dir: str, check: Validator
) -> Dict[str, str]:
    """Return the path of each channel.

    Args:
        sources: provides ``SM_CHANNELS`` and ``SM_CHANNEL_<NAME>``, which take precedence.
        inputs: the members of ``inputdataconfig.json``.
        data_dir: the parent directory of the channels.
        check: collects faults.
    """
    for found in inputs.values():
        if not isinstance(found.value, dict):
            check.faults.add("not the description of a channel", found, "a JSON object")
    listed = sources.json("SM_CHANNELS", list)
    if listed is None:
        listed = Found(list(inputs), "channels", f"SM_INPUT_DATA_CONFIG or {CHANNELS_FILE}")
    names = check.names(listed, _CHANNEL, "channel name") or []
    channels = {name: os.path.join(data_dir, name) for name in names}
    for name, path in sources.prefixed("SM_CHANNEL_"):
        for channel in match(names, name):
            channels[channel] = check.path(non_empty(path), os.path.join(data_dir, channel))
    return channels


class Directories(NamedTuple):
    """The directories that a job writes to: absolute paths, as in ``Job``."""

    model: str
    output: str
    data: str
    intermediate: str
    checkpoints: str


def read_outputs(sources: Sources, base: str, check: Validator) -> Directories:
    """Return the directories that a job writes to. One that is not writable is a fault.

    Args:
        sources: provides the ``SM_*_DIR`` variables.
        base: the base directory.
        check: collects faults.
    """

    def path(name: str, default: str) -> str:
        return check.path(sources.variable(name), default)

    output = path("SM_OUTPUT_DIR", os.path.join(base, "output"))
    found = Directories(
        model=path("SM_MODEL_DIR", os.path.join(base, "model")),
        output=output,
        data=path("SM_OUTPUT_DATA_DIR", os.path.join(output, "data")),
        intermediate=path("SM_OUTPUT_INTERMEDIATE_DIR", os.path.join(output, "intermediate")),
        checkpoints=path("SM_CHECKPOINT_DIR", os.path.join(base, "checkpoints")),
    )
    written = {
        "SM_MODEL_DIR": found.model,
        "SM_OUTPUT_DIR": found.output,
        "SM_OUTPUT_DATA_DIR": found.data,
    }
    for name, directory in written.items():
        problem = check_writable(directory)
        if problem:
            check.faults.add(f"{name}: {problem}")
    return found


def create(job: Job) -> None:
    """Create the directories that a script may write to.

    Raises:
        ConfigurationError: a required directory cannot be created.
    """
    needed = {
        "SM_MODEL_DIR": job.model_dir,
        "SM_OUTPUT_DIR": job.output_dir,
        "SM_OUTPUT_DATA_DIR": job.output_data_dir,
    }
    for name, path in needed.items():
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            expected = "mount a writable directory, or set another path"
            raise ConfigurationError(
                [f"{name}: cannot create {path}: {error.strerror}; {expected}"]
            ) from error
    # Optional: few scripts use them.
    for path in (job.output_intermediate_dir, job.checkpoint_dir):
        with contextlib.suppress(OSError):
            os.makedirs(path, exist_ok=True)


def check_writable(path: str) -> Optional[str]:
    """Return why a directory is not writable, or ``None`` if it is.

    If the directory does not exist, its nearest existing parent is checked. ``os.access`` alone
    ignores read-only file systems for root, and ``statvfs`` alone ignores permissions.
    """
    existing = path
    while not os.path.lexists(existing) and os.path.dirname(existing) != existing:
        existing = os.path.dirname(existing)
    expected = "expected a writable directory: mount one, or set another path"
    if not os.path.isdir(existing):
        return f"{path} cannot be written: {existing} is not a directory; {expected}"
    try:
        read_only = bool(os.statvfs(existing).f_flag & os.ST_RDONLY)
    except OSError as error:
        return f"{path} cannot be written: {existing}: {error.strerror}; {expected}"
    if read_only:
        return f"{path} cannot be written: {existing} is on a read-only file system; {expected}"
    if not os.access(existing, os.W_OK | os.X_OK):
        user = os.geteuid()
        return f"{path} cannot be written: user {user} may not write to {existing}; {expected}"
    return None
