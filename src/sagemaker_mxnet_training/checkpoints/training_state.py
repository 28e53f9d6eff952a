"""The state of training in a checkpoint: the common part of Gluon and Module."""

import contextlib
import logging
import os
from typing import Any, BinaryIO, Dict, Iterable, Iterator, List, Optional, Sequence

from sagemaker_mxnet_toolkit.compatibility.kvstore import servers_restored
from sagemaker_mxnet_training.checkpoints import optimizers, server_state, transfer
from sagemaker_mxnet_training.checkpoints.checkpoint_file import (
    CHUNK,
    CheckpointError,
    Member,
    states_name,
    weights_name,
)
from sagemaker_mxnet_training.checkpoints.job_environment import JobEnvironment
from sagemaker_mxnet_training.checkpoints.resume import CheckpointReader

_LOG = logging.getLogger("sagemaker_mxnet_training.checkpoints")


class TrainingState:
    """Captures and restores the weights of networks and the state of their optimizers.

    Args:
        job: the job.
    """

    def __init__(self, job: JobEnvironment) -> None:
        self._job = job
        self._optimizers: Sequence[Dict[str, Any]] = ()

    # Implemented by Gluon and Module.

    def open_distributed(self) -> Any:
        """Create and return the kvstore if it is a distributed one, else return ``None``.

        The kvstore has no optimizer yet, since the first step sends it.
        """
        raise NotImplementedError

    @property
    def kvstore(self) -> Any:
        """The kvstore that training uses; ``None`` without one, and before the first step."""
        raise NotImplementedError

    @property
    def started(self) -> bool:
        """Whether training has started, so that the servers or workers have the optimizer."""
        raise NotImplementedError

    @property
    def update_on_kvstore(self) -> bool:
        """Whether the kvstore updates the weights, and not this process."""
        raise NotImplementedError

    def weights(self) -> List[Dict[str, Any]]:
        """Return the weights of each network by name, without copying them."""
        raise NotImplementedError

    def optimizers(self) -> List[Any]:
        """Return the optimizer of each trainer."""
        raise NotImplementedError

    def local_updaters(self) -> List[Any]:
        """Return the ``mxnet.optimizer.Updater`` of each trainer in this process."""
        raise NotImplementedError

    def restore_local_states(self, states: Sequence[bytes]) -> None:
        """Restore the state of the updaters of this process."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Total size of the initialized weights in bytes."""
        raise NotImplementedError

    def settings(self) -> Dict[str, Any]:
        """Return additional settings as JSON."""
        return {}

    # Common to both.

    @property
    def servers(self) -> int:
        """Number of servers with the optimizer's state; 0 if it is on the workers."""
        on_servers = is_distributed(self.kvstore) and self.update_on_kvstore
        return self._job.servers if on_servers else 0

    @property
    def distributed(self) -> bool:
        """Whether several workers train together."""
        return self._job.horovod or is_distributed(self.kvstore)

    def about(self) -> Dict[str, Any]:
        """Return what must match when a checkpoint is restored."""
        kind = None if self.kvstore is None else self.kvstore.type
        shape = {"kvstore": kind, "servers": self.servers, "hosts": self._job.workers}
        sent = self.optimizers() if self.servers else []
        return {
            **shape,
            "settings": self.settings(),
            "optimizers": self._optimizers,
            "attributes": [optimizers.attributes(each) for each in sent],
        }

    def check_optimizers(self) -> None:
        """Record the script's optimizers before the first step.

        Raises:
            CheckpointError: an optimizer cannot be stored.
        """
        self._optimizers = [optimizers.describe(each) for each in self.optimizers()]

    def synchronize(self) -> None:
        """Wait until all steps are computed."""
        import mxnet

        mxnet.nd.waitall()

    def capture(self) -> Iterable[Member]:
        """Copy the current state, and return it as a checkpoint's members.

        Call it after a step. With ``dist_sync`` other hosts can continue, since no update is
        applied without the next push of this host.

        Raises:
            OSError: this host cannot listen for uploads of the servers.
            Exception: the state cannot be pickled.
        """
        self.synchronize()
        server: Optional[transfer.PartServer] = None
        if self.servers:
            server = transfer.PartServer(self._job.address)
            body = server_state.command("save", endpoint=server.endpoint)
            self.kvstore._send_command_to_servers(0, body)
        try:
            members: List[Member] = []
            if not self.servers:
                for number, updater in enumerate(self.local_updaters()):
                    members.append((states_name(number), (optimizers.dump_states(updater),)))
            for number, weights in enumerate(self.weights()):
                members.append((weights_name(number), _saved(weights)))
        except BaseException:
            if server is not None:
                server.close()
            raise
        return self._members(members, server)

    def _members(
        self, members: List[Member], server: Optional[transfer.PartServer]
    ) -> Iterator[Member]:
        if server is not None:  # the kvstore's servers are waiting to upload
            with server:
                yield from server.collect(map(server_state.part_name, range(self.servers)))
        yield from members

    def check_optimizers_match(self, checkpoint: CheckpointReader) -> None:
        """Compare the optimizers in a checkpoint with those of the script.

        Raises:
            CheckpointError: the state does not fit the script's optimizers.
        """
        before = checkpoint.about.get("optimizers")
        if before is None:  # written by release 5.0
            return
        warning = optimizers.check(checkpoint.name, before, self._optimizers)
        if warning and self._job.is_first:
            _LOG.warning("%s", warning)
        self._optimizers = before

    def restore_optimizer(self, checkpoint: CheckpointReader) -> None:
        """Restore the optimizer's state, on all hosts, before the first step.

        Raises:
            CheckpointError: the number of servers has changed.
        """
        self._check_servers(checkpoint)
        if self.servers:
            kvstore = self.kvstore
            kvstore._barrier()  # all workers have sent their optimizers
            if checkpoint.endpoint is not None:
                body = server_state.command("restore", endpoint=checkpoint.endpoint)
                kvstore._send_command_to_servers(0, body)
            kvstore._barrier()
            # Set the local copies to the servers' values, since only differences are sent later.
            attributes = checkpoint.about.get("attributes", ())
            for optimizer, values in zip(self.optimizers(), attributes):
                vars(optimizer).update(values)
            servers_restored(kvstore)
        else:
            count = len(self._optimizers)
            self.restore_local_states([checkpoint.read(states_name(n)) for n in range(count)])

    def _check_servers(self, checkpoint: CheckpointReader) -> None:
        about = checkpoint.about
        if about["servers"] != self.servers:
            raise CheckpointError(
                f"{checkpoint.name} contains the optimizer of {about['servers']} servers (kvstore "
                f"{about['kvstore']}, hosts: {about['hosts']}), but this job has {self.servers}: "
                "use the same kvstore, number of hosts and servers_per_host, or set "
                "SAGEMAKER_MXNET_RESUME=none to start afresh"
            )


def _saved(arrays: Any) -> Iterator[bytes]:
    """Copy arrays in the format of ``mxnet.nd.save``, and return the bytes in chunks."""
    import mxnet

    file = _memory_file()
    mxnet.nd.save(_path(file), arrays)
    return _chunks(file)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        offset = 0
        while True:
            chunk = os.pread(file.fileno(), CHUNK, offset)
            if not chunk:
                return
            offset += len(chunk)
            yield chunk


@contextlib.contextmanager
def as_file(content: bytes) -> Iterator[str]:
    """Yield the path of a file with this content."""
    with _memory_file() as file:
        file.write(content)
        file.flush()
        yield _path(file)


def _memory_file() -> BinaryIO:
    """Return a file in memory, since MXNet 1.9.1 only saves to and loads from paths."""
    return os.fdopen(os.memfd_create("checkpoint"), "w+b")


def _path(file: BinaryIO) -> str:
    return f"/proc/self/fd/{file.fileno()}"


def is_distributed(kvstore: Any) -> bool:
    """Return whether a kvstore, or the name of its type, is a distributed one."""
    kind = kvstore if isinstance(kvstore, str) else getattr(kvstore, "type", "")
    return "dist" in kind


def byte_count(array: Any) -> int:
    """Return the size of an array in bytes."""
    import numpy

    return int(array.size) * numpy.dtype(array.dtype).itemsize
