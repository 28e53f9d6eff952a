"""What a kvstore server does when the first host's worker orders it: save or restore its state.

With the optimizer on the servers nobody else has its state. An order is a command 0 (kController)
whose body starts with ``PREFIX``; MXNet 1.9.1 runs it in the thread that runs the updater, between
two updates. Commands go to every server, so an order only says where the bulk goes
(``checkpoints.transfer``).

- ``share``: make an offer of the first host known to the worker of this host, in a file.
- ``save``: pickle the state and give it away beside training.
- ``restore``: fetch the state and take it. The command ends when that is done.
"""

import contextlib
import json
import os
import pickle
import sys
import threading
from typing import Any, Dict, Mapping, Optional

PREFIX = "sagemaker-mxnet-training:"
"""How the body of an order starts. A pickle never does."""


def order(do: str, **fields: Any) -> str:
    """Return the body of the command that gives an order to all servers."""
    return PREFIX + json.dumps({"do": do, **fields})


def part_name(rank: int) -> str:
    """Return the name of the part that the server with this rank has."""
    return f"server-{rank}.states"


def offer_path(environ: Mapping[str, str]) -> str:
    """Return the path of the file in which an offer reaches the worker of this host."""
    # Late: most jobs have no offer, and every server would wait for these imports.
    import tempfile  # noqa: PLC0415

    from sagemaker_mxnet_training.host.watchdog import JOB_VARIABLE  # noqa: PLC0415

    return os.path.join(tempfile.gettempdir(), f"sagemaker-mxnet-{environ[JOB_VARIABLE]}.offer")


class ServerState:
    """The state of one server: its updater's, and the weights that only it has.

    With ``multi_precision`` the server updates float32 copies of the weights, of which workers see
    float16 values.
    """

    def __init__(self) -> None:
        self._updater: Any = None
        self._weights: Dict[Any, Any] = {}
        self._restored: Dict[Any, Any] = {}

    def follow(self, updater: Any) -> None:
        """Take note of a new updater (``mxnet.optimizer.Updater``)."""
        self._updater = updater
        self._weights, self._restored = {}, {}

    def before_update(self, key: Any, weight: Any) -> None:
        """Put a restored weight into its place before it is updated for the first time."""
        if self._updater.optimizer.multi_precision:
            self._weights[key] = weight
            if key in self._restored:
                weight[:] = self._restored.pop(key)

    def carry_out(self, body: bytes, rank: int) -> None:
        """Carry out an order.

        Raises:
            Exception: when a state cannot be restored. One that cannot be saved is reported to
                the worker, whose checkpoint it is, and training goes on.
        """
        fields = json.loads(body[len(PREFIX) :])
        if fields["do"] == "share":
            _share(fields["offer"])
        elif fields["do"] == "save":
            self._save(fields["place"], part_name(rank))
        elif fields["do"] == "restore":
            self._restore(fields["place"], part_name(rank))

    def _save(self, place: Mapping[str, Any], name: str) -> None:
        content: Optional[bytes] = None
        reason = ""
        try:
            content = self._pickled()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        threading.Thread(target=_give, args=(place, name, content, reason), daemon=True).start()

    def _pickled(self) -> bytes:
        # Pickling copies all arrays to host memory, so updates may go on after it.
        if self._updater is None:
            raise RuntimeError("no worker has sent an optimizer yet")
        weights = {key: array.asnumpy() for key, array in self._weights.items()}
        weights.update(self._restored)
        return pickle.dumps((self._updater.get_states(dump_optimizer=True), weights), protocol=4)

    def _restore(self, place: Mapping[str, Any], name: str) -> None:
        from sagemaker_mxnet_training.checkpoints import transfer  # noqa: PLC0415

        states, self._restored = pickle.loads(transfer.fetch(transfer.Place.from_json(place), name))
        self._updater.set_states(states)


def _share(offer: Mapping[str, Any]) -> None:
    import tempfile  # noqa: PLC0415

    path = offer_path(os.environ)
    # Several servers of a host write the same; whoever reads finds a whole one.
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".sagemaker-mxnet-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(offer, file)
    os.replace(temporary, path)


def _give(place: Mapping[str, Any], name: str, content: Optional[bytes], reason: str) -> None:
    from sagemaker_mxnet_training.checkpoints import transfer  # noqa: PLC0415

    try:
        where = transfer.Place.from_json(place)
        if content is None:
            transfer.give_up(where, name, reason)
        else:
            transfer.give(where, name, content)
    except OSError as error:
        # The worker misses it and says so; or it is gone, and so is this job.
        with contextlib.suppress(OSError):
            print(f"{name} did not reach the first host: {error}", file=sys.stderr, flush=True)
