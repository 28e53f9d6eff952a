"""The state of a kvstore server, and the commands by which the first host's worker controls it.

If the optimizer is on the servers, only they have its state. A command has number 0 (kController)
and a body that starts with ``ORDER``; MXNet 1.9.1 runs it in the thread of the updater, between two
updates. Commands are sent to all servers, so a body only has an endpoint, not the data
(``transfer``).

- ``share``: write the first host's offer of a checkpoint to a file, for the worker of this host.
- ``save``: pickle the state, and upload it while training continues.
- ``restore``: download the state and apply it, before the command ends.
- ``configure``: apply changes that the script has made to its copy of the optimizer.

Every kvstore server imports this module, so imports for single commands are deferred.
"""

import contextlib
import json
import os
import pickle
import threading
from typing import Any, Dict, Mapping, Optional, Sequence

from sagemaker_mxnet_toolkit.atomic_files import write_text
from sagemaker_mxnet_toolkit.compatibility.kvstore import ORDER, apply_changes
from sagemaker_mxnet_toolkit.processes.child_report import print_whole
from sagemaker_mxnet_toolkit.settings.variables import JOB_ID


def command(do: str, **fields: Any) -> str:
    """Return the body of a command to all servers."""
    return ORDER + json.dumps({"do": do, **fields})


def part_name(rank: int) -> str:
    """Return the name of a checkpoint's member with the state of the server of this rank."""
    return f"server-{rank}.states"


def is_part(name: str) -> bool:
    """Return whether a member of a checkpoint is a server's state."""
    return name.startswith("server-")


def offer_path(environ: Mapping[str, str]) -> str:
    """Return the path of the file with the offer for the worker of this host."""
    import tempfile

    return os.path.join(tempfile.gettempdir(), f"sagemaker-mxnet-{environ[JOB_ID]}.offer")


class ServerState:
    """The state of one server: that of its updater, and weights that only the server has.

    With ``multi_precision`` the server updates float32 copies of the weights; workers have float16
    values.
    """

    def __init__(self) -> None:
        self._updater: Any = None
        self._weights: Dict[Any, Any] = {}
        self._restored: Dict[Any, Any] = {}

    def set_updater(self, updater: Any) -> None:
        """Use a new ``mxnet.optimizer.Updater``."""
        self._updater = updater
        self._weights, self._restored = {}, {}

    def before_update(self, key: Any, weight: Any) -> None:
        """Restore a weight before its first update."""
        if self._updater.optimizer.multi_precision:
            self._weights[key] = weight
            if key in self._restored:
                weight[:] = self._restored.pop(key)

    def execute(self, body: bytes, rank: int) -> None:
        """Execute a command.

        Raises:
            Exception: a state cannot be restored. If it cannot be saved, this is reported to the
                worker that writes the checkpoint, and training continues.
        """
        fields = json.loads(body[len(ORDER) :])
        if fields["do"] == "share":
            _share(fields["offer"])
        elif fields["do"] == "save":
            self._save(fields["endpoint"], part_name(rank))
        elif fields["do"] == "restore":
            self._restore(fields["endpoint"], part_name(rank))
        elif fields["do"] == "configure":
            apply_changes(self._updater.optimizer, fields["changed"])

    def _save(self, endpoint: Sequence[Any], name: str) -> None:
        content: Optional[bytes] = None
        reason = ""
        try:
            content = self._pickled()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        arguments = (endpoint, name, content, reason)
        threading.Thread(target=_upload, args=arguments, daemon=True).start()

    def _pickled(self) -> bytes:
        # Pickling copies all arrays to host memory, so updates may continue afterwards.
        if self._updater is None:
            raise RuntimeError("no worker has sent an optimizer yet")
        weights = {key: array.asnumpy() for key, array in self._weights.items()}
        weights.update(self._restored)
        return pickle.dumps((self._updater.get_states(dump_optimizer=True), weights), protocol=4)

    def _restore(self, endpoint: Sequence[Any], name: str) -> None:
        from sagemaker_mxnet_training.checkpoints import transfer

        content = transfer.download(transfer.Endpoint(*endpoint), name)
        states, self._restored = pickle.loads(content)
        self._updater.set_states(states)


def _share(offer: Mapping[str, Any]) -> None:
    # All servers of a host write the same file, each atomically.
    write_text(offer_path(os.environ), json.dumps(offer), flush=False)


def _upload(endpoint: Sequence[Any], name: str, content: Optional[bytes], reason: str) -> None:
    from sagemaker_mxnet_training.checkpoints import transfer

    try:
        if content is None:
            transfer.report_failure(transfer.Endpoint(*endpoint), name, reason)
        else:
            transfer.upload(transfer.Endpoint(*endpoint), name, content)
    except transfer.TransferError as error:
        # The worker reports the missing part, unless it has ended.
        with contextlib.suppress(OSError):
            print_whole(f"cannot upload to the first host: {error}")
