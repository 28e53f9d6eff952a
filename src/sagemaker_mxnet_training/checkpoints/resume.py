"""What training goes on from: decided by the first host, the same for all.

Hosts do not share disks, so the first host opens the file and hands out what is in it. Where there
is a distributed kvstore, its servers make the offer known: an order reaches each of them, and each
leaves the offer in a file for the worker of its host. No key of the kvstore is used for it: keys
that are text get their numbers in the order in which they are first used, and an optimizer knows
parameters by these numbers.
"""

import contextlib
import json
import logging
import os
from typing import Any, Callable, Dict, Iterable, Optional, Tuple

from sagemaker_mxnet_toolkit.settings.variables import FRESH, RESUME
from sagemaker_mxnet_training.checkpoints import catalog, transfer
from sagemaker_mxnet_training.checkpoints.archive import Archive
from sagemaker_mxnet_training.checkpoints.errors import CheckpointError, DamagedError
from sagemaker_mxnet_training.checkpoints.job_environment import JobEnvironment
from sagemaker_mxnet_training.roles import server_state

ABOUT, WEIGHTS, STATES = "about.json", "weights.params", "trainer.states"
"""Members of a checkpoint: position and settings, weights, and the optimizer's state where workers
have it. Servers have theirs in ``server-<rank>.states``."""

_LOG = logging.getLogger("sagemaker_mxnet_training.checkpoints")


class Source:
    """A checkpoint to go on from, or this host's part of it. It is a context manager.

    Attributes:
        name: the file's name.
        about: the content of ``ABOUT``.
        place: on the first host, where the servers fetch their parts.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[str], bytes],
        place: Optional[transfer.Place] = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.read = read
        self.place = place
        self._close = close
        self.about: Dict[str, Any] = json.loads(read(ABOUT))

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def find(job: JobEnvironment, distributed: Callable[[], Any]) -> Optional[Source]:
    """Return what training goes on from, or ``None`` for a fresh start.

    Args:
        job: the job.
        distributed: opens the distributed kvstore, or returns ``None`` where there is none. All
            hosts must call this function then.

    Raises:
        CheckpointError: when the checkpoint that ``RESUME`` names cannot be used.
    """
    if job.resume == FRESH:
        return None
    kvstore = distributed()
    if kvstore is None:
        archive = _open(job)
        return None if archive is None else Source(archive.name, archive.read, None, archive.close)
    if job.is_first:
        return _offer(job, kvstore)
    return _accept(kvstore)


def _open(job: JobEnvironment) -> Optional[Archive]:
    path = os.path.join(job.directory, job.resume or "")
    # The supervisors have looked in the job's own directory: in another, the script knows better.
    if job.resume is not None and (os.path.exists(path) or not job.elsewhere):
        if not job.is_first and not os.path.exists(path):
            _LOG.warning("%s is not on this host, which starts afresh", job.resume)
            return None
        try:
            archive = Archive(path)
            archive.verify()
        except DamagedError as error:
            text = f"{job.resume} in {job.directory} ({RESUME}) cannot be used: {error}"
            raise CheckpointError(text) from error
        return archive
    entry, damaged = catalog.newest_whole(job.directory)
    for damage in damaged:
        _LOG.warning("%s is damaged and not used: %s", damage.name, damage.reason)
    return None if entry is None else Archive(os.path.join(job.directory, entry.name))


def _offer(job: JobEnvironment, kvstore: Any) -> Optional[Source]:
    archive = _open(job)
    offer: Dict[str, Any] = {"name": None}
    source = None
    if archive is not None:
        listener = transfer.Listener(job.address)
        opened = archive

        def part(name: str) -> Tuple[int, Iterable[bytes]]:
            return opened.size(name), opened.chunks(name)

        def close() -> None:
            listener.close()
            opened.close()

        listener.serve(part)
        source = Source(archive.name, archive.read, listener.place, close)
        states = STATES in archive.names
        offer = {"name": archive.name, "place": listener.place.to_json(), "states": states}
    kvstore._send_command_to_servers(0, server_state.order("share", offer=offer))
    kvstore._barrier()
    _forget_offer()
    kvstore._barrier()  # all have what they need
    return source


def _accept(kvstore: Any) -> Optional[Source]:
    kvstore._barrier()
    with open(server_state.offer_path(os.environ), encoding="utf-8") as file:
        offer = json.load(file)
    _forget_offer()
    source = None
    if offer["name"] is not None:
        place = transfer.Place.from_json(offer["place"])
        names = (ABOUT, WEIGHTS, STATES) if offer["states"] else (ABOUT, WEIGHTS)
        parts = {name: transfer.fetch(place, name) for name in names}
        source = Source(str(offer["name"]), parts.__getitem__)
    kvstore._barrier()
    return source


def _forget_offer() -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(server_state.offer_path(os.environ))
