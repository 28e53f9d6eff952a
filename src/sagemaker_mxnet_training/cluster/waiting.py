"""The hosts that the leader waits for: log messages, and timeouts."""

from typing import Dict, Optional

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role
from sagemaker_mxnet_training.cluster.coordinator import PROGRESS_PERIOD, listed
from sagemaker_mxnet_training.cluster.decision import Cluster, Phase
from sagemaker_mxnet_training.cluster.events import HostState
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.control.members import LOOKUP_TIME, MemberConnections

MISSING_LIMIT = 10
"""Maximum number of missing hosts whose names are resolved, and that a failure names."""

_UNEVEN = (
    "with dist_sync all hosts must push equally often; use the same number of batches on all hosts"
)


class Waiting:
    """What the hosts last reported.

    Args:
        now: the current time (monotonic, seconds).

    Attributes:
        states: the state of each host that has reported one.
        idle: seconds since the worker of a host last made progress.
    """

    def __init__(self, job: Job, now: float) -> None:
        self.states: Dict[str, HostState] = {}
        self.idle: Dict[str, float] = {}
        self._job = job
        self._opened = now
        self.reset(now)

    def reset(self, now: float) -> None:
        """Forget the reports, for a new attempt."""
        self.states = {}
        self.idle = dict.fromkeys(self._job.hosts, 0.0)
        self._logged = now

    def line(self, cluster: Cluster, now: float) -> str:
        """Return a log message about the wait, or an empty string if none is due."""
        if now - self._logged < PROGRESS_PERIOD:
            return ""
        text = ""
        missing = sorted(cluster.hosts - cluster.joined)
        if cluster.phase is Phase.GATHERING and missing:
            text = f"waiting for {listed(missing)} to join, {self._join_time(now):.0f} s left"
        elif cluster.phase is Phase.GATHERING:
            text = self._preparing(cluster)
        elif cluster.phase is Phase.TRAINING and cluster.finished:
            text = self._training(cluster)
        if text:
            self._logged = now
        return text

    def join_failure(
        self, cluster: Cluster, members: MemberConnections, now: float
    ) -> Optional[Failure]:
        """Return the failure if hosts have not joined in time, else ``None``."""
        missing = sorted(cluster.hosts - cluster.joined)
        timeout, left = self._job.settings.join_timeout, self._join_time(now)
        if not missing or cluster.phase is not Phase.GATHERING:
            return None
        if left <= min(LOOKUP_TIME, timeout / 2):
            members.look_up(missing[:MISSING_LIMIT])
        if left > 0:
            return None
        why = "; ".join(map(members.obstacle, missing[:MISSING_LIMIT]))
        reason = (
            f"{listed(missing)} did not join within {timeout:g} s ({why}); "
            f"{self._job.current_host} listens on {members.listening}"
        )
        return Failure(missing[0], Role.ENTRYPOINT, reason, kind=FailureKind.JOIN)

    def stalled(self, cluster: Cluster) -> Optional[Failure]:
        """Return the failure if no host has made progress for ``stall_timeout``, else ``None``."""
        limit = self._job.settings.stall_timeout
        training = sorted(cluster.hosts - cluster.finished)
        if not limit or cluster.phase is not Phase.TRAINING or not training:
            return None
        idle = min(self.idle[host] for host in training)
        if idle < limit:
            return None
        reason = f"stalled: no progress for {idle:.0f} s on {listed(training)}"
        kind = FailureKind.STALLED
        if cluster.finished:
            # Not restarted: the last checkpoint says that all has been trained.
            kind = FailureKind.UNEVEN
            reason += f", after {listed(sorted(cluster.finished))} had finished: {_UNEVEN}"
        return Failure(training[0], Role.WORKER, reason, kind=kind)

    def _join_time(self, now: float) -> float:
        """Return the seconds until hosts must have joined."""
        return max(0.0, self._opened + self._job.settings.join_timeout - now)

    def _preparing(self, cluster: Cluster) -> str:
        busy = []
        for host in sorted(cluster.joined - cluster.ready):
            state = self.states.get(host)
            if state is not None:
                busy.append(f"{host} ({state.value})")
        return f"waiting for {listed(busy)}" if busy else ""

    def _training(self, cluster: Cluster) -> str:
        training = []
        advice = ""
        for host in sorted(cluster.hosts - cluster.finished)[:10]:
            idle = self.idle[host]
            stuck = f" (no progress for {idle:.0f} s)" if idle >= PROGRESS_PERIOD else ""
            training.append(f"{host}{stuck}")
            if stuck:
                advice = f": {_UNEVEN}; sagemaker_mxnet_stall_timeout would make this a failure"
        finished = listed(sorted(cluster.finished))
        return f"{finished} finished and waiting for {', '.join(training)}{advice}"
