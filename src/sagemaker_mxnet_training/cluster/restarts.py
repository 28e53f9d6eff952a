"""Decides whether a failed attempt is followed by a restart."""

from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind

DEFAULT_RESTARTS = 3
"""Default of ``max_restarts`` for a script that uses ``checkpoints``."""

_RESTARTABLE = frozenset(
    (
        FailureKind.EXCEPTION,
        FailureKind.EXIT_STATUS,
        FailureKind.SIGNAL,
        FailureKind.PEER,
        FailureKind.OUT_OF_MEMORY,
        FailureKind.FROZEN,
        FailureKind.STALLED,
        FailureKind.LOST,
    )
)
"""Failures worth a retry. All others are errors in the job, its environment, or this package."""

_ON_ANY_HOST = frozenset(
    (FailureKind.EXCEPTION, FailureKind.EXIT_STATUS, FailureKind.OUT_OF_MEMORY)
)
"""Failures of the script, which may happen first on any host."""


@dataclass(frozen=True)
class FailedAttempt:
    """A failed attempt.

    Attributes:
        number: number of the attempt, from 1.
        failure: its failure.
        started: whether its roles were started.
        committed: whether a checkpoint was written in it.
        away: whether a host was lost or has left.
    """

    number: int
    failure: Failure
    started: bool
    committed: bool
    away: bool = False


def limit(max_restarts: Optional[int], checkpoints: bool) -> int:
    """Return the maximum number of restarts.

    Args:
        max_restarts: the setting; ``None`` means ``DEFAULT_RESTARTS`` if the script uses
            ``checkpoints``, else 0.
        checkpoints: whether the script uses ``checkpoints``.
    """
    if max_restarts is not None:
        return max_restarts
    return DEFAULT_RESTARTS if checkpoints else 0


def refusal(
    max_restarts: Optional[int],
    checkpoints: bool,
    failed: FailedAttempt,
    before: Sequence[FailedAttempt] = (),
) -> str:
    """Return why there is no restart; an empty string if there is one.

    Args:
        max_restarts: the setting, as for ``limit``.
        checkpoints: whether the script uses ``checkpoints``.
        failed: the attempt that has failed.
        before: earlier attempts, in order.
    """
    most = limit(max_restarts, checkpoints)
    kind = failed.failure.kind
    reasons = (
        (most == 0, "restarts are off"),
        (not failed.started, "the job had not started"),
        (kind not in _RESTARTABLE, f"a failure of this kind ({kind.value}) would happen again"),
        (failed.away or kind is FailureKind.LOST, "a lost host does not come back"),
        (_repeated(failed, before), "it has happened before, and no checkpoint was written since"),
        (failed.number > most, f"the job was restarted {most} times (max_restarts)"),
    )
    return next((reason for holds, reason in reasons if holds), "")


def _repeated(failed: FailedAttempt, before: Sequence[FailedAttempt]) -> bool:
    """Return whether the same failure has already happened since the last checkpoint."""
    after = failed
    for attempt in reversed(before):
        if after.committed:
            return False
        if _identity(failed.failure) == _identity(attempt.failure):
            return True
        after = attempt
    return False


def _identity(failure: Failure) -> Tuple[object, ...]:
    """Return a key that is equal for failures with the same cause."""
    host, kind = failure.host, failure.kind
    if kind in (FailureKind.STALLED, FailureKind.PEER):
        return (kind,)  # their reasons contain durations or addresses
    if kind in _ON_ANY_HOST:
        # The reason may name the host, as in a path of a local run.
        return (kind, failure.role, failure.reason.replace(host, ""), failure.status)
    return (kind, failure.role, failure.rank, failure.reason, host)
