"""What keeps hosts from joining, as both sides see it, and when that ends the job.

A host that was given other hyperparameters, or another ``job_key``, would never be let in. It is
not worth waiting for: once it has called for some seconds without a change, the job ends on both
sides, with what differs as the cause. Those seconds are there for an earlier job, whose leader may
still be ending under the same address.

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
from typing import Callable, Dict, Optional, Sequence, Tuple

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role
from sagemaker_mxnet_training.cluster.channel import PeerDiffers, Stranger
from sagemaker_mxnet_training.cluster.coordination import listed
from sagemaker_mxnet_training.cluster.keys import JobKeys
from sagemaker_mxnet_training.cluster.network import NameLookup

FOLLOWER_GRACE = 5.0
"""Seconds for which a follower must have been refused before that ends the job.

An earlier leader goes on answering for ``coordination.REPORT_DEADLINE`` after its end.
"""

LEADER_GRACE = 3.0
"""Seconds for which a follower must have called before that ends the job.

Shorter: the leader must know before the follower calls no more. After its verdict it goes on
answering for ``coordination.REPORT_DEADLINE``, so that the follower comes to know too.
"""

DISAGREEMENT_FORGOTTEN = 5.0
"""Seconds without a call after which a disagreement counts no more."""

CALLERS_LIMIT = 64
"""Callers that disagree and are remembered: strangers must not fill the memory."""

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

    def lasts(self, grace: float, now: float) -> bool:
        """Tell whether it has lasted for a time, and was seen a short while ago."""
        return self.last - self.first >= grace and now - self.last <= DISAGREEMENT_FORGOTTEN


def noted(seen: Optional[Disagreement], difference: str, now: float) -> Disagreement:
    """Return ``seen`` continued, or a new disagreement if it was another one, or long ago."""
    forgotten = seen is not None and now - seen.last > DISAGREEMENT_FORGOTTEN
    if seen is None or seen.difference != difference or forgotten:
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
        self._disagreements: Dict[Tuple[str, str], Disagreement] = {}  # by host and address

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
        caller = (event.host, event.address)
        seen = self._disagreements.get(caller)
        if seen is not None or len(self._disagreements) < CALLERS_LIMIT:
            self._disagreements[caller] = noted(seen, event.difference, now)
        if not self._keys.proves_membership(event.difference):
            self._start_lookup(event.host)

    def check(self, missing: Sequence[str], now: float) -> Optional[Failure]:
        """Return why the job cannot begin, if it cannot."""
        for (host, address), seen in self._disagreements.items():
            lasting = host in missing and seen.lasts(LEADER_GRACE, now)
            if lasting and self._is_host(host, address, seen.difference):
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

    def _is_host(self, host: str, address: str, difference: str) -> bool:
        """Tell whether a caller is the host that it calls itself, as far as that can be known."""
        if self._keys.proves_membership(difference):
            return True
        lookup = self._lookups.get(host)
        return lookup is not None and lookup.address == address

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
