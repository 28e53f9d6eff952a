"""What ``bootstrap`` does for a script that trains with Horovod.

Horovod need not be installed: nothing here imports it.
"""

import functools
import importlib.util
import io
import os
import re
import sys
from importlib.machinery import ModuleSpec
from typing import Any, List, Optional, Set

from sagemaker_mxnet_toolkit.processes.child_report import Report

_BASICS = "horovod.common.basics"
"""The module that has Horovod's ``init``, of every framework (0.16 to 0.28)."""

# Errors of Horovod 0.28.1 and Gloo after another worker has died. MXNet removes the name of Gloo's
# source file from them.
_LOST_PEER = re.compile(
    r"Horovod has been shut down|gloo::|/gloo/transport/|"
    r"Connection (?:closed|reset) by peer|Broken pipe|(?:Read|Write) (?:error|timeout) |"
    r"Socket (?:unexpectedly )?closed |Timed out waiting |caused pair closure"
)


def write_whole_lines() -> None:
    """Write each line of standard output at once: the workers of a host share it.

    With ``PYTHONUNBUFFERED``, ``print`` writes each argument by itself.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, write_through=False)


def report_threads(report: Report) -> None:
    """Report the threads that ``hvd.init`` starts: they use the CPU also when there is no work."""
    sys.meta_path.insert(0, _Finder(report))


class _Finder:
    """Waits for the import of Horovod."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Optional[ModuleSpec]:
        """Return where the module is, with a loader that wraps ``init``."""
        if name != _BASICS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def execute_and_wrap(module: Any) -> None:
                execute(module)
                _wrap_init(module.HorovodBasics, self._report)

            loader.exec_module = execute_and_wrap
        return spec


def _wrap_init(basics: Any, report: Report) -> None:
    init = basics.init

    @functools.wraps(init)
    def init_and_report(*args: Any, **options: Any) -> Any:
        before = _threads()
        result = init(*args, **options)
        report.event("horovod", threads=sorted(_threads() - before))
        return result

    basics.init = init_and_report


def _threads() -> Set[int]:
    return set(map(int, os.listdir("/proc/self/task")))


def names_lost_peer(text: str) -> bool:
    """Return whether a worker's output shows that it failed because another worker had died."""
    return _LOST_PEER.search(text) is not None


def lost_peer(error: BaseException) -> bool:
    """Return whether Horovod failed because another worker was gone, and the script for that."""
    seen: List[BaseException] = []
    cause: Optional[BaseException] = error if "horovod" in sys.modules else None
    while cause is not None and cause not in seen:
        seen.append(cause)
        if type(cause).__name__ == "MXNetError" and names_lost_peer(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def ended_by_stop(error: BaseException) -> bool:
    """Return whether rank 0 has left with the last checkpoint of a job that stops."""
    manager = sys.modules.get("sagemaker_mxnet_training.checkpoints.manager")
    return getattr(manager, "stopping", False) and lost_peer(error)
