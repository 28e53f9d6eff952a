"""For whom the job waits: what the leader tells in the log, and when waiting becomes a failure."""

from dataclasses import dataclass
from typing import Dict, Optional, Sequence

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role
from sagemaker_mxnet_training.cluster.coordination import PROGRESS_PERIOD, listed
from sagemaker_mxnet_training.cluster.decision import Cluster, Phase
from sagemaker_mxnet_training.cluster.events import Step


@dataclass
class HostStatus:
    """What a host last reported about itself.

    Attributes:
        step: what it does.
        idle: seconds for which its worker has made no progress.
    """

    step: Optional[Step] = None
    idle: float = 0.0


class Waiting:
    """The status of all hosts, and how often it is told.

    Args:
        hosts: all hosts of the job.
        stall_timeout: seconds without progress that are a failure; 0 for never.
        now: when the job began (monotonic, seconds).

    Attributes:
        status: what each host last reported.
    """

    def __init__(self, hosts: Sequence[str], stall_timeout: float, now: float) -> None:
        self.status: Dict[str, HostStatus] = {}
        self._hosts = hosts
        self._stall_timeout = stall_timeout
        self.begin_anew(now)

    def begin_anew(self, now: float) -> None:
        """Forget what was reported: another attempt begins."""
        self.status = {host: HostStatus() for host in self._hosts}
        self._told = now

    def line(self, cluster: Cluster, join_time_left: float, now: float) -> str:
        """Return what to log about the wait; empty between two such lines."""
        if now - self._told < PROGRESS_PERIOD:
            return ""
        text = ""
        missing = sorted(cluster.hosts - cluster.joined)
        if cluster.phase is Phase.GATHERING and missing:
            text = f"waiting for {listed(missing)} to join, {join_time_left:.0f} s left"
        elif cluster.phase is Phase.GATHERING:
            text = self._preparing(cluster)
        elif cluster.phase is Phase.TRAINING and cluster.finished:
            text = self._training(cluster)
        if text:
            self._told = now
        return text

    def stalled(self, cluster: Cluster) -> Optional[Failure]:
        """Return the failure of a job in which nobody makes progress, if there is such a limit."""
        training = sorted(cluster.hosts - cluster.finished)
        if not self._stall_timeout or cluster.phase is not Phase.TRAINING or not training:
            return None
        idle = min(self.status[host].idle for host in training)
        if idle < self._stall_timeout:
            return None
        reason = f"stalled: no progress for {idle:.0f} s on {listed(training)}"
        if cluster.finished:
            reason += (
                f", while {listed(sorted(cluster.finished))} had finished: with dist_sync every "
                "host must push equally often; give all hosts the same number of batches"
            )
        return Failure(training[0], Role.WORKER, reason, kind=FailureKind.STALLED)

    def _preparing(self, cluster: Cluster) -> str:
        busy = []
        for host in sorted(cluster.joined - cluster.ready):
            step = self.status[host].step
            if step is not None:
                busy.append(f"{host} ({step.value})")
        return f"waiting for {listed(busy)}" if busy else ""

    def _training(self, cluster: Cluster) -> str:
        training = []
        for host in sorted(cluster.hosts - cluster.finished)[:10]:
            idle = self.status[host].idle
            stuck = f" (no progress for {idle:.0f} s)" if idle >= PROGRESS_PERIOD else ""
            training.append(f"{host}{stuck}")
        return f"{listed(sorted(cluster.finished))} finished and waiting for {', '.join(training)}"
