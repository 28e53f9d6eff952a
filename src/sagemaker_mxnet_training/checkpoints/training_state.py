"""State of a training that a checkpoint holds: what Gluon and Module have in common."""

import contextlib
from typing import Any, Dict, Iterable, Iterator, List, Optional

from sagemaker_mxnet_training.checkpoints import memory_file, transfer
from sagemaker_mxnet_training.checkpoints.archive import Member
from sagemaker_mxnet_training.checkpoints.errors import CheckpointError
from sagemaker_mxnet_training.checkpoints.job_environment import JobEnvironment
from sagemaker_mxnet_training.checkpoints.resume import STATES, WEIGHTS, Source
from sagemaker_mxnet_training.roles import server_state


class TrainingState:
    """Captures and restores weights and the optimizer's state.

    Args:
        job: the job.
    """

    def __init__(self, job: JobEnvironment) -> None:
        self._job = job

    # What Gluon and Module do in their own ways.

    def open_distributed(self) -> Any:
        """Open the kvstore if it is a distributed one, and return it; ``None`` otherwise.

        It is opened for use, not given an optimizer: the first step does that.
        """
        raise NotImplementedError

    @property
    def kvstore(self) -> Any:
        """The kvstore that training uses; ``None`` without one, and before the first step."""
        raise NotImplementedError

    @property
    def started(self) -> bool:
        """Whether the optimizer is in its place: on the servers, if that is where it belongs."""
        raise NotImplementedError

    @property
    def update_on_kvstore(self) -> bool:
        """Whether the kvstore updates the weights, rather than this process."""
        raise NotImplementedError

    def weights(self) -> Dict[str, Any]:
        """Return the weights by name. They need not be copies."""
        raise NotImplementedError

    def local_updater(self) -> Any:
        """Return the ``mxnet.optimizer.Updater`` of this process."""
        raise NotImplementedError

    def restore_local_states(self, states: bytes) -> None:
        """Restore the state of the updaters of this process."""
        raise NotImplementedError

    def settings(self) -> Dict[str, Any]:
        """Return JSON of small things that belong to the training."""
        return {}

    # What they have in common.

    @property
    def servers(self) -> int:
        """Number of servers that have the optimizer's state; 0 where workers have it."""
        on_servers = self.distributed and self.update_on_kvstore
        return self._job.servers if on_servers else 0

    @property
    def distributed(self) -> bool:
        """Whether the hosts train together."""
        return self.kvstore is not None and "dist" in self.kvstore.type

    def about(self) -> Dict[str, Any]:
        """Return what must be the same where a checkpoint is restored."""
        kind = None if self.kvstore is None else self.kvstore.type
        shape = {"kvstore": kind, "servers": self.servers, "hosts": self._job.hosts}
        return {**shape, "settings": self.settings()}

    def check(self, source: Source) -> None:
        """Raise an error if the state in a checkpoint does not fit.

        Raises:
            CheckpointError: when the servers were others.
        """
        about = source.about
        if about["servers"] != self.servers:
            raise CheckpointError(
                f"{source.name} holds the optimizer of {about['servers']} servers (kvstore "
                f"{about['kvstore']}, hosts: {about['hosts']}), and this job has {self.servers}: "
                "run it with the same kvstore, hosts and servers_per_host, or set "
                "SAGEMAKER_MXNET_RESUME=none to start afresh"
            )

    def settle(self) -> None:
        """Wait until all steps that were begun are computed."""
        import mxnet  # noqa: PLC0415

        mxnet.nd.waitall()

    def capture(self) -> Iterable[Member]:
        """Copy the state at this moment, and return it as a checkpoint's members.

        To be called after a step. With ``dist_sync`` other hosts need do nothing: no update is
        applied without the next push of this host.

        Raises:
            OSError: when there is no way for the servers to deliver.
            Exception: when the state cannot be pickled.
        """
        self.settle()
        listener = None
        if self.servers:
            listener = transfer.Listener(self._job.address)
            place = listener.place.to_json()
            self.kvstore._send_command_to_servers(0, server_state.order("save", place=place))
        try:
            members: List[Member] = []
            if not self.servers:
                states = self.local_updater().get_states(dump_optimizer=True)
                members.append((STATES, (states,)))
            weights = memory_file.save_arrays(self.weights())
        except BaseException:
            if listener is not None:
                listener.close()
            raise
        members.append((WEIGHTS, memory_file.chunks(weights)))
        return self._members(members, listener)

    def _members(
        self, members: List[Member], listener: Optional[transfer.Listener]
    ) -> Iterator[Member]:
        if listener is not None:  # first: the servers wait with it
            with listener:
                yield from listener.collect(map(server_state.part_name, range(self.servers)))
        yield from members

    def restore_optimizer(self, source: Source) -> None:
        """Restore the optimizer's state, on all hosts, before the first step.

        Raises:
            CheckpointError: when it does not fit.
        """
        self.check(source)
        if self.servers:
            kvstore = self.kvstore
            kvstore._barrier()  # every worker has sent its optimizer, and none will again
            if source.place is not None:
                order = server_state.order("restore", place=source.place.to_json())
                kvstore._send_command_to_servers(0, order)
            kvstore._barrier()
        else:
            self.restore_local_states(source.read(STATES))


@contextlib.contextmanager
def as_file(content: bytes) -> Iterator[str]:
    """Give a path under which MXNet finds ``content``."""
    with memory_file.create(content) as file:
        yield memory_file.path(file)


def is_distributed(kvstore: Any) -> bool:
    """Tell whether a kvstore, or the name of its type, is a distributed one."""
    kind = kvstore if isinstance(kvstore, str) else getattr(kvstore, "type", "")
    return "dist" in kind
