"""The input channels of a job. They are not opened, since a channel in Pipe mode is a FIFO."""

import os
import re
from typing import Dict, Mapping

from sagemaker_mxnet_toolkit.settings.faults import Found, present
from sagemaker_mxnet_toolkit.settings.sources import Sources, match
from sagemaker_mxnet_toolkit.settings.validation import Validator, matching

FILE = "inputdataconfig.json"
"""The configuration file that describes the channels."""

CHANNEL_NAME = re.compile(r"(?!\.+\Z)[A-Za-z0-9._-]{1,255}\Z")
"""The pattern of ChannelName (API reference, Channel)."""

_NAME = matching(CHANNEL_NAME, "a channel name", "1 to 255 letters, digits, '.', '-' and '_'")


def read(
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
        listed = Found(list(inputs), "channels", f"SM_INPUT_DATA_CONFIG or {FILE}")
    names = check.names(listed, _NAME, "channel name") or []
    channels = {name: os.path.join(data_dir, name) for name in names}
    for name, path in sources.prefixed("SM_CHANNEL_"):
        for channel in match(names, name):
            channels[channel] = check.path(present(path), os.path.join(data_dir, channel))
    return channels
