"""Whether another attempt follows one that failed: a pure decision."""

from dataclasses import dataclass
from typing import Optional, Sequence

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind

DEFAULT_RESTARTS = 3
"""Restarts of a job whose script uses ``checkpoints``, where ``max_restarts`` is not set."""

_RESTARTABLE = frozenset(
    (
        FailureKind.EXCEPTION,
        FailureKind.EXIT_STATUS,
        FailureKind.SIGNAL,
        FailureKind.OUT_OF_MEMORY,
        FailureKind.FROZEN,
        FailureKind.STALLED,
        FailureKind.LOST,
        FailureKind.CHECKPOINT,
    )
)
"""What may not happen again. Everything else is a fault of the job, of its place, or of ours."""


@dataclass(frozen=True)
class RestartPolicy:
    """How often a job begins again.

    Attributes:
        max_restarts: as the setting; ``None`` for ``DEFAULT_RESTARTS`` if the script uses
            ``checkpoints``, and none otherwise.
        rejoin_timeout: seconds that a lost host has to come back; 0 if none does.
    """

    max_restarts: Optional[int] = None
    rejoin_timeout: float = 0.0


@dataclass(frozen=True)
class FailedAttempt:
    """How an attempt went.

    Attributes:
        number: 1 for the first.
        failure: what ended it.
        started: whether its roles were started.
        committed: whether a checkpoint was written in it.
        away: whether a host was lost, or has left, before its failure was judged.
    """

    number: int
    failure: Failure
    started: bool
    committed: bool
    away: bool = False


def limit(max_restarts: Optional[int], checkpoints: bool) -> int:
    """Return how often a job may begin again.

    Args:
        max_restarts: the setting.
        checkpoints: whether the script uses ``checkpoints``.
    """
    if max_restarts is not None:
        return max_restarts
    return DEFAULT_RESTARTS if checkpoints else 0


def refusal(
    policy: RestartPolicy,
    checkpoints: bool,
    failed: FailedAttempt,
    before: Sequence[FailedAttempt] = (),
) -> str:
    """Return why there is no further attempt; an empty text if there is one.

    Args:
        policy: the job's.
        checkpoints: whether the script uses ``checkpoints``.
        failed: the attempt that failed now.
        before: the attempts before it, in order.
    """
    most = limit(policy.max_restarts, checkpoints)
    kind = failed.failure.kind
    reasons = (
        (most == 0, "restarts are off"),
        (not failed.started, "the job had not started"),
        (kind not in _RESTARTABLE, f"a failure of this kind ({kind.value}) would happen again"),
        (
            (failed.away or kind is FailureKind.LOST) and not policy.rejoin_timeout,
            "a lost host does not come back (rejoin_timeout is 0)",
        ),
        (_repeated(failed, before), "it has happened before, and no checkpoint was written since"),
        (failed.number > most, f"the job was restarted {most} times (max_restarts)"),
    )
    return next((reason for holds, reason in reasons if holds), "")


def _repeated(failed: FailedAttempt, before: Sequence[FailedAttempt]) -> bool:
    """Tell whether the same failure ended an attempt since the last checkpoint was written."""
    one, after = failed.failure, failed
    for attempt in reversed(before):
        other = attempt.failure
        if after.committed:
            return False
        if (one.host, one.role, one.reason) == (other.host, other.role, other.reason):
            return True
        after = attempt
    return False
