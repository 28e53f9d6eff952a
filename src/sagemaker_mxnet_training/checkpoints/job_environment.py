"""What the environment says to the helper: where checkpoints are, which host this is."""

import json
import os
import socket
from dataclasses import dataclass
from typing import Mapping, Optional

from sagemaker_mxnet_toolkit.settings.variables import NO_CHECKPOINTS, RESUME
from sagemaker_mxnet_training.checkpoints.errors import CheckpointError

DIRECTORY_VARIABLE = "SM_CHECKPOINT_DIR"
"""Variable that names the directory of the checkpoints."""


@dataclass(frozen=True)
class JobEnvironment:
    """Attributes that a script's helper needs of its job.

    Attributes:
        directory: where checkpoints are.
        elsewhere: whether that is another directory than the job's own.
        hosts: number of hosts.
        place: place of this host among them, in sorted order.
        resume: value of ``RESUME``; ``None`` without one.
        address: this host's address in the kvstore's network.
        servers: number of kvstore servers of the job.
    """

    directory: str
    elsewhere: bool
    hosts: int
    place: int
    resume: Optional[str]
    address: str
    servers: int

    @property
    def is_first(self) -> bool:
        """Whether this is the host that writes checkpoints: the first in sorted order."""
        return self.place == 0


def read(environ: Mapping[str, str], directory: Optional[str] = None) -> JobEnvironment:
    """Read the environment.

    Args:
        environ: usually ``os.environ``.
        directory: where checkpoints are; default ``SM_CHECKPOINT_DIR``, or ``checkpoints`` below
            ``SAGEMAKER_BASE_DIR`` (``/opt/ml``).

    Raises:
        CheckpointError: when the job can have no checkpoints.
        ValueError: when a variable makes no sense.
    """
    if environ.get(NO_CHECKPOINTS):
        raise CheckpointError(environ[NO_CHECKPOINTS])
    current = environ.get("SM_CURRENT_HOST") or socket.gethostname()
    text = environ.get("SM_HOSTS") or json.dumps([current])
    try:
        hosts = sorted(json.loads(text))
        place = hosts.index(current)
    except (TypeError, ValueError):
        raise ValueError(
            f"SM_HOSTS: expected a JSON list of host names with SM_CURRENT_HOST, {current!r}, "
            f"among them, got {text!r}"
        ) from None
    base = environ.get("SAGEMAKER_BASE_DIR") or "/opt/ml"
    own = os.path.abspath(environ.get(DIRECTORY_VARIABLE) or os.path.join(base, "checkpoints"))
    chosen = os.path.abspath(directory) if directory else own
    resume = environ.get(RESUME) or None
    if resume is not None and os.path.basename(resume) != resume:
        raise ValueError(f"{RESUME}: expected a file name, got {resume!r}")
    return JobEnvironment(
        directory=chosen,
        elsewhere=chosen != own,
        hosts=len(hosts),
        place=place,
        resume=resume,
        address=environ.get("DMLC_NODE_HOST") or "127.0.0.1",
        servers=int(environ.get("DMLC_NUM_SERVER") or 0),
    )
