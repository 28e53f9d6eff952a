"""What keeps hosts from joining, as both sides see it, and when that ends the job.

A host that was given other hyperparameters, or another ``job_key``, would never be let in. It is
not worth waiting for: once it has called for ``DISAGREEMENT_GRACE`` without a change, the job ends
on both sides, with what differs as the cause. The grace is there for the leader of an earlier job,
which may still be ending under the same address.

What a stranger can do with that:

- To a job that has started, nothing: a host that is a member, or was one, is not waited for.
- To a leader that waits for a host, nothing by what anybody can learn or guess. The caller has to
  hold the job's ``job_key`` as a part of the key that fits; where there is none, or where it is
  what differs, it has to call from the address that the host's name resolves to. A TCP connection
  cannot be opened with another machine's address as the sender, unless its traffic can be read.
- To a follower, only what it takes to answer at the leader's address, under the leader's name: who
  can do that keeps the follower from joining in any case.

Everything else that calls under the name of a missing host is only told as a part of the cause
when the time to join is up.
"""

from dataclasses import dataclass
from typing import Callable, Dict, Optional, Sequence

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role
from sagemaker_mxnet_training.cluster.channel import PeerDiffers, Stranger
from sagemaker_mxnet_training.cluster.coordination import listed
from sagemaker_mxnet_training.cluster.keys import JobKeys
from sagemaker_mxnet_training.cluster.network import NameLookup

DISAGREEMENT_GRACE = 5.0
"""Seconds for which a host must disagree with the leader before that ends the job."""

LOOKUP_TIME = 5.0
"""Seconds for which the names of missing hosts are looked up, for the cause of a join timeout."""

LOOKUP_LIMIT = 10
"""Names that are looked up: as many as a cause lists."""


@dataclass
class Disagreement:
    """In what a host and the leader differ, and since when (monotonic, seconds)."""

    difference: str
    first: float
    last: float

    def lasts(self, now: float) -> bool:
        """Tell whether it has lasted for the grace, and still does."""
        return now - self.first >= DISAGREEMENT_GRACE >= now - self.last


def noted(seen: Optional[Disagreement], difference: str, now: float) -> Disagreement:
    """Return ``seen`` continued, or a new disagreement if it was another one, or long ago."""
    if seen is None or seen.difference != difference or now - seen.last > DISAGREEMENT_GRACE:
        return Disagreement(difference, now, now)
    return Disagreement(difference, seen.first, now)


def disagreement(host: str, leader: str, difference: str) -> Failure:
    """Return the failure of a host that was given another job than the leader."""
    reason = (
        f"does not agree with {leader} on the job: they were given different {difference}; "
        "give all hosts the same"
    )
    return Failure(host, Role.ENTRYPOINT, reason, kind=FailureKind.JOIN)


class JoinWatch:
    """The leader's watch over the hosts that have not joined.

    Args:
        keys: the job's keys.
        leader: this host's name.
        join_timeout: seconds that hosts have to join.
        look_up: starts to look a name up.
        now: when hosts could join first (monotonic, seconds).
    """

    def __init__(
        self,
        keys: JobKeys,
        leader: str,
        join_timeout: float,
        look_up: Callable[[str], NameLookup],
        now: float,
    ) -> None:
        self._keys = keys
        self._leader = leader
        self._timeout = join_timeout
        self._look_up = look_up
        self._opened = now
        self._lookups: Dict[str, NameLookup] = {}
        self._claims: Dict[str, str] = {}
        self._disagreements: Dict[str, Disagreement] = {}

    def left(self, now: float) -> float:
        """Return the seconds that hosts still have to join."""
        return max(0.0, self._opened + self._timeout - now)

    def on_stranger(self, event: Stranger) -> None:
        """Remember who called under a missing host's name, for the cause."""
        if event.host:
            self._claims[event.host] = f"a caller at {event.address} {event.reason}"

    def on_differs(self, event: PeerDiffers, now: float) -> None:
        """Take note of a host that calls and was given another job."""
        self._claims[event.host] = (
            f"{event.host} called from {event.address}, but was given different {event.difference}"
        )
        if not self._keys.proves_membership(event.difference):
            self._start_lookup(event.host)
            lookup = self._lookups.get(event.host)
            if lookup is None or lookup.address != event.address:
                return
        seen = self._disagreements.get(event.host)
        self._disagreements[event.host] = noted(seen, event.difference, now)

    def check(self, missing: Sequence[str], now: float) -> Optional[Failure]:
        """Return why the job cannot begin, if it cannot."""
        for host in missing:
            seen = self._disagreements.get(host)
            if seen is not None and seen.lasts(now):
                return disagreement(host, self._leader, seen.difference)
        if self.left(now) <= min(LOOKUP_TIME, self._timeout / 2):
            for host in missing[:LOOKUP_LIMIT]:
                self._start_lookup(host)
        if not missing or self.left(now) > 0:
            return None
        why = "; ".join(self._obstacle(host) for host in missing[:LOOKUP_LIMIT])
        reason = f"{listed(missing)} did not join within {self._timeout:g} s ({why})"
        return Failure(missing[0], Role.ENTRYPOINT, reason, kind=FailureKind.JOIN)

    def close(self) -> None:
        """Give up all lookups."""
        for lookup in self._lookups.values():
            lookup.close()

    def _start_lookup(self, host: str) -> None:
        if host not in self._lookups and len(self._lookups) < LOOKUP_LIMIT:
            self._lookups[host] = self._look_up(host)

    def _obstacle(self, host: str) -> str:
        lookup = self._lookups.get(host)
        if host in self._claims:
            return self._claims[host]
        if lookup is None:
            return f"{host} never called"
        if lookup.address:
            return f"{host} resolves to {lookup.address} but never called"
        return lookup.obstacle
