"""Finds the checkpoint that training resumes from, the same for all workers.

Hosts do not share disks, so the first worker opens the file and sends its content to the others.

- With Horovod, rank 0 broadcasts it.
- With a distributed kvstore, the first host's worker serves it (``transfer``). A command offers it
  to the kvstore's servers, and each writes the offer to a file for the worker of its host. This
  does not use a key of the kvstore, since string keys are numbered in the order of their first use,
  and an optimizer identifies parameters by these numbers.
"""

import contextlib
import json
import logging
import os
import sys
from typing import Any, Callable, Dict, List, Optional

from sagemaker_mxnet_toolkit.settings.variables import FRESH, RESUME
from sagemaker_mxnet_training.checkpoints import catalog, server_state, transfer
from sagemaker_mxnet_training.checkpoints.checkpoint_file import (
    ABOUT,
    CheckpointError,
    CheckpointFile,
    DamagedError,
)
from sagemaker_mxnet_training.checkpoints.job_environment import JobEnvironment

_PIECE = 1 << 26
"""Bytes that rank 0 broadcasts at once, since MXNet's arrays have fewer than 2**31 elements."""

_LOG = logging.getLogger("sagemaker_mxnet_training.checkpoints")


class CheckpointReader:
    """Reads a checkpoint to resume from. It is a context manager.

    Attributes:
        name: the file's name.
        read: returns the content of a member.
        about: the content of ``ABOUT``.
        endpoint: on the first host, the endpoint for the downloads of servers.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[str], bytes],
        endpoint: Optional[transfer.Endpoint] = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.read = read
        self.endpoint = endpoint
        self._close = close
        self.about: Dict[str, Any] = json.loads(read(ABOUT))

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def find(job: JobEnvironment, open_distributed: Callable[[], Any]) -> Optional[CheckpointReader]:
    """Return the checkpoint to resume from, or ``None`` for a fresh start.

    Args:
        job: the job.
        open_distributed: creates the distributed kvstore, or returns ``None`` if there is none. If
            there is one, all hosts must call this function.

    Raises:
        CheckpointError: the checkpoint of ``RESUME`` cannot be used.
    """
    if job.resume == FRESH:
        return None
    if job.horovod:
        return _broadcast(job, _horovod())
    kvstore = open_distributed()
    if kvstore is None:
        file = _open(job)
        return None if file is None else CheckpointReader(file.name, file.read, close=file.close)
    return _offer(job, kvstore) if job.is_first else _accept(kvstore)


def _open(job: JobEnvironment) -> Optional[CheckpointFile]:
    path = os.path.join(job.directory, job.resume or "")
    # The supervisor has only searched the job's directory, not another one of the script.
    if job.resume is not None and (os.path.exists(path) or not job.elsewhere):
        if not job.is_first and not os.path.exists(path):
            _LOG.warning("%s is not on this host, which starts afresh", job.resume)
            return None
        try:
            file = CheckpointFile(path, verified=path == job.verified)
            file.verify()
        except DamagedError as error:
            text = (
                f"{job.resume} in {job.directory} ({RESUME}) cannot be used: {error}; set another "
                f"file, or {FRESH} to start afresh"
            )
            raise CheckpointError(text) from error
        return file
    entry, damaged = catalog.newest_whole(job.directory)
    for damage in damaged:
        _LOG.warning("skipping damaged %s: %s", damage.name, damage.reason)
    if entry is None:
        return None
    return CheckpointFile(os.path.join(job.directory, entry.name), verified=True)


def _horovod() -> Any:
    """Return the module ``horovod.mxnet``, which the script has initialized.

    Raises:
        CheckpointError: it is not initialized.
    """
    module = sys.modules.get("horovod.mxnet")
    try:
        if module is not None and module.rank() >= 0:
            return module
    except ValueError:
        pass
    raise CheckpointError(
        "Horovod is not initialized: call hvd.init() (import horovod.mxnet as hvd) before "
        "Checkpoint() or its fit()"
    )


def _broadcast(job: JobEnvironment, horovod: Any) -> Optional[CheckpointReader]:
    """Open the checkpoint on rank 0, and send its members to all other ranks."""
    file = _open(job) if job.is_first else None
    offer: List[Any] = [None, []]
    if file is not None:
        names = [name for name in file.names if not server_state.is_part(name)]
        offer = [file.name, [[name, file.size(name)] for name in names]]
    text = json.dumps(offer).encode() if job.is_first else b""
    size = int(_broadcast_bytes(horovod, b"%08x" % len(text), 8), 16)
    name, members = json.loads(_broadcast_bytes(horovod, text, size))
    contents = {}
    for member, size in members:
        content = _broadcast_bytes(horovod, file.read(member) if file else b"", size)
        if file is None:
            contents[member] = content
    if file is not None:
        return CheckpointReader(file.name, file.read, close=file.close)
    return None if name is None else CheckpointReader(name, contents.__getitem__)


def _broadcast_bytes(horovod: Any, content: bytes, size: int) -> bytes:
    """Broadcast bytes from rank 0, and return them on all ranks.

    Args:
        horovod: ``horovod.mxnet``.
        content: the bytes on rank 0; ignored on others, where it has the same size or is empty.
        size: number of bytes, known to all ranks.
    """
    import mxnet
    import numpy

    pieces = []
    for start in range(0, size, _PIECE):
        array = mxnet.nd.zeros((min(_PIECE, size - start),), mxnet.cpu(), "uint8")
        if content:
            array[:] = numpy.frombuffer(content[start : start + _PIECE], "uint8")
        horovod.broadcast_(array, 0, name="checkpoint")
        pieces.append(array.asnumpy().tobytes())
    return b"".join(pieces)


def _offer(job: JobEnvironment, kvstore: Any) -> Optional[CheckpointReader]:
    file = _open(job)
    offer: Dict[str, Any] = {"name": None}
    reader = None
    if file is not None:
        reader = _serve(job, file)
        names = [name for name in file.names if not server_state.is_part(name)]
        offer = {"name": file.name, "endpoint": reader.endpoint, "names": names}
    kvstore._send_command_to_servers(0, server_state.command("share", offer=offer))
    kvstore._barrier()
    _remove_offer()
    kvstore._barrier()  # all workers have got the content
    return reader


def _serve(job: JobEnvironment, file: CheckpointFile) -> CheckpointReader:
    server = transfer.PartServer(job.address, lambda name: (file.size(name), file.chunks(name)))

    def close() -> None:
        server.close()
        file.close()

    return CheckpointReader(file.name, file.read, server.endpoint, close)


def _accept(kvstore: Any) -> Optional[CheckpointReader]:
    kvstore._barrier()
    with open(server_state.offer_path(os.environ), encoding="utf-8") as file:
        offer = json.load(file)
    _remove_offer()
    reader = None
    if offer["name"] is not None:
        endpoint = transfer.Endpoint(*offer["endpoint"])
        parts = {name: transfer.download(endpoint, name) for name in offer["names"]}
        reader = CheckpointReader(str(offer["name"]), parts.__getitem__)
    kvstore._barrier()
    return reader


def _remove_offer() -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(server_state.offer_path(os.environ))
