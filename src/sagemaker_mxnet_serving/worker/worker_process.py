"""A worker: answers the frames of the HTTP front until the connection is closed.

``load`` loads the model, in a worker or in the process that forks workers.
"""

import contextlib
import os
import random
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Any, Mapping, NoReturn, Optional

from sagemaker_mxnet_serving import worker_frames
from sagemaker_mxnet_serving.inference import (
    MEMORY_REMEDY,
    ModelError,
    ModelMemoryError,
    ModelSettings,
)
from sagemaker_mxnet_toolkit import compatibility
from sagemaker_mxnet_toolkit.requirements import known

if TYPE_CHECKING:
    from sagemaker_mxnet_serving.worker.loading import LoadedModel

_REASON = 2000
_DETAIL = 8000

# Texts of errors of libmxnet 1.9.1 and other native libraries when an allocation fails. Python
# raises a RuntimeError for them.
_MEMORY_TEXTS = ("out of memory", "Failed to allocate CPU Memory", "bad_alloc")


def load(settings: ModelSettings) -> "LoadedModel":
    """Import MXNet and the script, load the model, and predict once.

    It starts no threads, since the process may fork afterwards.

    Raises:
        ModelError: the model cannot be served; ``ModelMemoryError`` if it is out of memory.
    """
    compatibility.install()
    try:
        # Late, as it imports MXNet, for which the compatibility layer has to be installed.
        from sagemaker_mxnet_serving.worker import loading

        model = loading.load_model(settings)
        model.warm_up()
    except ImportError as error:
        install = known.INSTALL_MXNET if error.name == "mxnet" else known.INSTALL_SERVING
        raise ModelError(
            f"a package that serving needs cannot be imported: {error}; run {install}"
        ) from error
    except Exception as error:
        if _is_memory_error(error):
            raise ModelMemoryError(
                f"not enough memory for the model; {MEMORY_REMEDY}\n{error}"
            ) from error
        raise
    return model


def _is_memory_error(error: Optional[BaseException]) -> bool:
    """Return whether an error, or its cause, is a lack of memory."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXTS):
            return True
        error = error.__cause__
    return False


def run(
    connection: socket.socket, settings: ModelSettings, model: "Optional[LoadedModel]"
) -> NoReturn:
    """Run a worker in a process that was forked for it, until it ends.

    Its first frame is a greeting with the key ``ready``, and with ``model`` (the description) or,
    if the model cannot be loaded, ``reason``, ``detail`` and ``kind`` (a value of ``FailureKind``).

    Args:
        connection: to the HTTP front.
        settings: the model, which is loaded here if there is no ``model``.
        model: the model, if it was loaded before the fork.
    """
    status = 1
    try:
        if model is None:
            model = _load(connection, settings)
        else:
            _reseed()
        if model is not None:
            _greet(connection, {"ready": True, "model": model.describe()})
            _serve(connection, model)
            status = 0
    except ConnectionError:  # the front has ended
        status = 0
    except SystemExit as error:
        print(f"worker {os.getpid()}: the script raised {error!r}; exiting", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # Exit handlers of the parent process must not run here.
        os._exit(status)


def _load(connection: socket.socket, settings: ModelSettings) -> "Optional[LoadedModel]":
    pid = os.getpid()
    try:
        model = load(settings)
    except ModelError as error:
        exit_if_forked(pid)
        reason, _, detail = str(error).partition("\n")
        failure = {
            "reason": reason[:_REASON],
            "detail": detail[-_DETAIL:],
            "kind": error.kind.value,
        }
        _greet(connection, {"ready": False, **failure})
        return None
    exit_if_forked(pid)
    return model


def _reseed() -> None:
    """Reseed the random generators, so that each worker has random numbers of its own."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def _greet(connection: socket.socket, greeting: Mapping[str, Any]) -> None:
    worker_frames.send(connection, worker_frames.encode([(greeting, ())]))


def _serve(connection: socket.socket, model: "LoadedModel") -> None:
    pid = os.getpid()
    while True:
        items = worker_frames.receive(connection)
        if items is None:
            return
        requests = [worker_frames.to_request(item) for item in items]
        responses = model.predict(requests)
        exit_if_forked(pid)
        worker_frames.send(
            connection,
            worker_frames.encode(list(map(worker_frames.from_response, requests, responses))),
        )


def exit_if_forked(pid: int) -> None:
    """End this process if a function of the script forked it, and returned in it too.

    It has the sockets of its parent, and its responses would be taken for the parent's.

    Args:
        pid: the process id before the script was called.
    """
    if os.getpid() == pid:
        return
    print(
        f"process {os.getpid()}: a function of the script forked, and returned in the child too; "
        "ending the child; call os._exit() in it, or use subprocess or multiprocessing",
        file=sys.stderr,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def restore_signals() -> None:
    """Reset the signal handlers of the parent process."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
