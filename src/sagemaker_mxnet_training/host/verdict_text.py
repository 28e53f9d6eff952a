"""Messages about the end of a job: in the log, in the failure file, in ``local`` and in reports.

They depend on the outcome and the kind of the failure, never on the text of its cause.
"""

from typing import TYPE_CHECKING, Optional

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role

if TYPE_CHECKING:
    from sagemaker_mxnet_training.cluster.events import Verdict

WORDS = {Outcome.SUCCESS: "SUCCEEDED", Outcome.STOP: "STOPPED", Outcome.FAILURE: "FAILED"}
"""A word for each outcome."""

_DETAIL_LINES = 20

_ADVICE = {
    FailureKind.INTERNAL: (
        "this is a bug in sagemaker-mxnet-training: please report it with its log"
    ),
    FailureKind.OUT_OF_MEMORY: (
        "increase the memory of the container, or reduce that of the script (batch size, workers)"
    ),
    FailureKind.REQUIREMENTS: (
        "correct requirements.txt or the settings of pip, or add its packages to the image"
    ),
    FailureKind.CODE: (
        "correct what the cause names: the code, sagemaker_submit_directory, or the disk space"
    ),
    FailureKind.CONFIGURATION: "correct the settings that the cause names",
    FailureKind.JOIN: (
        "check that all hosts were started, with the same configuration, and reach each other"
    ),
    FailureKind.PEER: (
        "find the worker that ended first in the logs of all hosts: this one lost its connection"
    ),
    FailureKind.LOST: "check the log and the machine of {host}",
    FailureKind.FROZEN: "find out what suspended the process on {host}: SIGSTOP, or a debugger",
    FailureKind.STALLED: (
        "find out what the worker on {host} waits for; sagemaker_mxnet_stall_timeout is the limit"
    ),
    FailureKind.UNEVEN: "give all hosts the same number of batches, also in the last epoch",
    FailureKind.NETWORK: "free the port or the address that the cause names, or set another one",
    FailureKind.OUTPUT: "free disk space on the output volume of {host}, or make it writable",
    FailureKind.CHECKPOINT: "free disk space for checkpoints on {host}, or make it writable",
    FailureKind.CHECKPOINT_USE: "change the script or the directory according to the cause",
}
_OF_A_PROGRAM = {
    Role.FETCH: _ADVICE[FailureKind.CODE],
    Role.INSTALL: _ADVICE[FailureKind.REQUIREMENTS],
}


def headline(outcome: Outcome, seconds: float, restarts: int = 0) -> str:
    """Return ``job SUCCEEDED after 8.4 s and 1 restart``."""
    return f"job {WORDS[outcome]} after {duration(seconds)}{_and(restarts)}"


def closing_line(outcome: Outcome, seconds: float, status: int, restarts: int = 0) -> str:
    """Return the last line of a host's log."""
    # ``failure_block`` already has "the job FAILED".
    word = "failed" if outcome is Outcome.FAILURE else f"was {WORDS[outcome]}"
    if outcome is Outcome.SUCCESS:
        word = WORDS[outcome]
    return f"the job {word} after {duration(seconds)}{_and(restarts)}; exit status {status}"


def failure_text(verdict: "Verdict") -> str:
    """Return the text of the failure file: the cause, earlier restarts, and its detail."""
    failure = verdict.failure
    if failure is None:
        return ""
    before = [_earlier(verdict)] if verdict.restarts else []
    return "\n".join([failure.headline(), *before, failure.detail]).rstrip()


def failure_block(verdict: "Verdict", host: str, seconds: float, code_dir: str) -> str:
    """Return the summary at the end of the log of a failed job.

    Args:
        verdict: how it ended, with a failure.
        host: the host of the log.
        seconds: duration of the job.
        code_dir: directory of the user's code.
    """
    failure = verdict.failure
    assert failure is not None
    lines = [
        "the job FAILED",
        f"  cause: {failure.headline()}",
        *([f"         {_earlier(verdict)}"] if verdict.restarts else []),
        f"  host:  {failure.host}{' (this host)' if failure.host == host else ''}",
        f"  role:  {failure.role.value}",
        *([] if failure.rank is None else [f"  rank:  {failure.rank}"]),
        f"  kind:  {failure.kind.value}",
        f"  ran:   {duration(seconds)}",
    ]
    if failure.detail:
        lines.append("  detail:")
        lines += [f"    {line}" for line in failure.detail.splitlines()[-_DETAIL_LINES:]]
    lines.append(f"  next:  {advice(failure, host, code_dir)}")
    return "\n".join(lines)


def advice(failure: Failure, host: Optional[str] = None, code_dir: str = "") -> str:
    """Return what to do about a failure, in one line.

    Args:
        failure: the cause.
        host: the host of the log; ``None`` in a report.
        code_dir: directory of the user's code.
    """
    text = _ADVICE.get(failure.kind) or _OF_A_PROGRAM.get(failure.role)
    if text is not None:
        return text.format(host=failure.host)
    if host is None:
        return (
            f"read the output of {failure.host} before its end: `local` has printed it, and "
            "SageMaker stores it in CloudWatch Logs"
        )
    if failure.host != host:
        return f"read the log of {failure.host} above its summary"
    return f"read the log above; the code is in {code_dir}"


def _earlier(verdict: "Verdict") -> str:
    first = f"; the first: {verdict.first_cause}" if verdict.first_cause else ""
    return f"after {count(verdict.restarts)}{first}"


def _and(restarts: int) -> str:
    return f" and {count(restarts)}" if restarts else ""


def count(restarts: int) -> str:
    """Return ``1 restart`` or ``2 restarts``."""
    return "1 restart" if restarts == 1 else f"{restarts} restarts"


def duration(seconds: float) -> str:
    """Return ``8.4 s``, ``3 min 05 s`` or ``2 h 03 min``."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"
