"""Processes that have imported MXNet and wait: with them another attempt starts sooner.

They are started once the script of an attempt trains, since nobody knows when it will fail.
"""

import json
import os
import time
from typing import Callable, Dict, Optional

from sagemaker_mxnet_toolkit.container import cgroup
from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_toolkit.processes.process import Child, ProcessSpec
from sagemaker_mxnet_toolkit.processes.table import ProcessTable
from sagemaker_mxnet_training.cluster.restarts import limit
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.host import plan
from sagemaker_mxnet_training.host.attempt import Attempt

PROCESS_MEMORY = 180 * 2**20
"""Bytes of resident memory of a process that has imported MXNet 1.9.1; half of it is shared."""

_SHARE = 0.05


class StandbyProcesses:
    """Starts a process for each role of the next attempt, and turns it into that role.

    Args:
        job: the job.
        log: the entrypoint's log.
        table: the processes of this host.
        start: starts one process.
    """

    def __init__(
        self, job: Job, log: Log, table: ProcessTable, start: Callable[[ProcessSpec], Child]
    ) -> None:
        self._job = job
        self._log = log
        self._table = table
        self._start = start
        self._waiting: Dict[str, Child] = {}  # by the name of the role

    def prepare(self, attempt: Attempt) -> None:
        """Start them for the attempt after this one, if there can be one and they are wanted."""
        settings = self._job.settings
        again = attempt.number <= limit(settings.max_restarts, attempt.checkpointing)
        if self._waiting or attempt.stop is not None or not again:
            return
        specs = [spec for spec in attempt.specs if program.module_of(spec.argv) is not None]
        if not wanted(settings.standby, self._job.num_cpus, len(specs), memory()):
            return
        names = ", ".join(spec.name for spec in specs)
        self._log("entrypoint", f"processes for another attempt wait: {names}")
        for spec in specs:
            self._waiting[spec.name] = child = self._start(plan.standby(spec))
            child.stopped = True  # how it ends matters to nobody

    def take(self, spec: ProcessSpec) -> Optional[Child]:
        """Turn a process that waits into a role; return ``None`` if there is none for it."""
        child = self._waiting.pop(spec.name, None)
        run = program.module_of(spec.argv)
        if child is None or run is None or child not in self._table.living(Role.STANDBY):
            return None
        module, arguments = run
        order = {
            "module": module,
            "arguments": arguments,
            "environment": dict(spec.environment),
            "directory": spec.directory,
        }
        if not child.write_stdin(json.dumps(order).encode() + b"\n"):
            return None
        child.spec, child.started, child.stopped = spec, time.monotonic(), False
        return child

    def dismiss(self) -> None:
        """End those that wait."""
        self._waiting.clear()
        for child in self._table.living(Role.STANDBY):
            child.close_stdin()


def wanted(setting: str, cpus: int, processes: int, memory_bytes: int) -> bool:
    """Return whether processes shall wait: pure, from the setting and the host.

    Args:
        setting: ``on``, ``off`` or ``auto``: where they take little of the memory, and a CPU is
            there that they do not take from the script when they start.
        cpus: CPUs of the host.
        processes: how many there would be.
        memory_bytes: of the host.
    """
    if setting != "auto":
        return setting == "on"
    return cpus > 1 and processes * PROCESS_MEMORY <= _SHARE * memory_bytes


def memory() -> int:
    """Return the memory of this host in bytes: the container's limit, or the machine's."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical, cgroup.memory_limit() or physical)
