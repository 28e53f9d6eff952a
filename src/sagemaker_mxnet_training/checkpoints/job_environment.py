"""Reads the environment of a script: the directory of checkpoints, and the worker's rank."""

import json
import os
import socket
from dataclasses import dataclass
from typing import Mapping, Optional

from sagemaker_mxnet_toolkit.settings.variables import NO_CHECKPOINTS, RESUME, VERIFIED
from sagemaker_mxnet_training.checkpoints.checkpoint_file import CheckpointError

DIRECTORY_VARIABLE = "SM_CHECKPOINT_DIR"
"""Variable with the directory of checkpoints."""


@dataclass(frozen=True)
class JobEnvironment:
    """The environment of a ``Checkpoint``.

    Attributes:
        directory: the directory of checkpoints.
        elsewhere: whether this is not the job's directory.
        workers: number of workers that train together: the number of hosts, or Horovod's size.
        rank: rank of this worker: the index of its host in sorted order, or Horovod's rank.
        horovod: whether the workers use Horovod.
        resume: value of ``RESUME``, or ``None``.
        verified: path of the checkpoint that this host's supervisor has verified.
        address: this host's address in the kvstore's network.
        servers: number of kvstore servers of the job.
        owner: description of this process, for errors of others that need its directory.
    """

    directory: str
    elsewhere: bool
    workers: int
    rank: int
    horovod: bool
    resume: Optional[str]
    verified: Optional[str]
    address: str
    servers: int
    owner: str = ""

    @property
    def is_first(self) -> bool:
        """Whether this worker writes checkpoints, as the first host or rank 0."""
        return self.rank == 0


def read(environ: Mapping[str, str], directory: Optional[str] = None) -> JobEnvironment:
    """Read the environment.

    Args:
        environ: usually ``os.environ``.
        directory: the directory of checkpoints; default ``SM_CHECKPOINT_DIR``, or ``checkpoints``
            in ``SAGEMAKER_BASE_DIR`` (``/opt/ml``).

    Raises:
        CheckpointError: the job cannot use checkpoints.
        ValueError: a variable is not valid.
    """
    if environ.get(NO_CHECKPOINTS):
        raise CheckpointError(environ[NO_CHECKPOINTS])
    current = environ.get("SM_CURRENT_HOST") or socket.gethostname()
    text = environ.get("SM_HOSTS") or json.dumps([current])
    try:
        hosts = sorted(json.loads(text))
        index = hosts.index(current)
    except (TypeError, ValueError):
        raise ValueError(
            f"SM_HOSTS: expected a JSON list of host names that includes SM_CURRENT_HOST, "
            f"{current!r}, got {text!r}"
        ) from None
    workers, rank = len(hosts), index
    horovod = int(environ.get("HOROVOD_SIZE") or 1) > 1
    if horovod:
        workers, rank = int(environ["HOROVOD_SIZE"]), int(environ["HOROVOD_RANK"])
    base = environ.get("SAGEMAKER_BASE_DIR") or "/opt/ml"
    own = os.path.abspath(environ.get(DIRECTORY_VARIABLE) or os.path.join(base, "checkpoints"))
    chosen = os.path.abspath(directory) if directory else own
    resume = environ.get(RESUME) or None
    if resume is not None and os.path.basename(resume) != resume:
        raise ValueError(f"{RESUME}: expected a file name, got {resume!r}")
    return JobEnvironment(
        directory=chosen,
        elsewhere=chosen != own,
        workers=workers,
        rank=rank,
        horovod=horovod,
        resume=resume,
        verified=environ.get(VERIFIED),
        # ``host.plan`` formats it as hexadecimal, with leading zeros.
        address=socket.inet_ntoa(socket.inet_aton(environ.get("DMLC_NODE_HOST") or "127.0.0.1")),
        servers=int(environ.get("DMLC_NUM_SERVER") or 0),
        owner=f"process {os.getpid()} on {socket.gethostname()}"
        + (f", job {environ['TRAINING_JOB_NAME']}" if environ.get("TRAINING_JOB_NAME") else ""),
    )
