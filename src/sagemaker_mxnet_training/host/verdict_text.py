"""The words for how a job ended: in the log, in the failure file, in ``local`` and in reports.

What is said follows from the outcome and from the kind of the failure, never from its text.
"""

from typing import TYPE_CHECKING

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role

if TYPE_CHECKING:
    from sagemaker_mxnet_training.cluster.coordination import Verdict

WORDS = {Outcome.SUCCESS: "SUCCEEDED", Outcome.STOP: "STOPPED", Outcome.FAILURE: "FAILED"}
"""One word for each outcome."""

_DETAIL_LINES = 20

_ADVICE = {
    FailureKind.INTERNAL: (
        "this is a defect of sagemaker-mxnet-training: please report it with this log"
    ),
    FailureKind.OUT_OF_MEMORY: (
        "give the container more memory, or let the script use less (batch size, workers)"
    ),
    FailureKind.REQUIREMENTS: "correct requirements.txt, or add what it needs to the image",
    FailureKind.CODE: "check sagemaker_submit_directory and what it names",
    FailureKind.CONFIGURATION: "correct the settings that the cause names",
    FailureKind.JOIN: (
        "check that all hosts were started, with the same job description, and reach each other"
    ),
    FailureKind.LOST: "look at the log and at the machine of {host}",
    FailureKind.FROZEN: "find out who suspended the process on {host}: SIGSTOP, or a debugger",
    FailureKind.STALLED: (
        "look for what the worker on {host} waits for; sagemaker_mxnet_stall_timeout sets the limit"
    ),
    FailureKind.NETWORK: "free the port or the address that the cause names, or set another one",
    FailureKind.OUTPUT: "free some space on the output volume of {host}, or mount it writable",
    FailureKind.CHECKPOINT: "free some space for checkpoints on {host}, or mount it writable",
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
    # A failed job has said "the job FAILED" in the block that ``failure_block`` returns.
    word = "failed" if outcome is Outcome.FAILURE else f"was {WORDS[outcome]}"
    if outcome is Outcome.SUCCESS:
        word = WORDS[outcome]
    return f"the job {word} after {duration(seconds)}{_and(restarts)}; exit status {status}"


def failure_text(verdict: "Verdict") -> str:
    """Return the text of the failure file: the cause, the restarts before it, and its detail."""
    failure = verdict.failure
    if failure is None:
        return ""
    before = [_earlier(verdict)] if verdict.restarts else []
    return "\n".join([failure.headline(), *before, failure.detail]).rstrip()


def failure_block(verdict: "Verdict", host: str, seconds: float, code_dir: str) -> str:
    """Return the lines with which a failed job ends its log on every host.

    Args:
        verdict: how it ended, with a failure.
        host: the host whose log it is.
        seconds: how long the job ran.
        code_dir: where the user's code is.
    """
    failure = verdict.failure
    assert failure is not None
    lines = [
        "the job FAILED",
        f"  cause: {failure.headline()}",
        *([f"         {_earlier(verdict)}"] if verdict.restarts else []),
        f"  host:  {failure.host}{' (this host)' if failure.host == host else ''}",
        f"  role:  {failure.role.value}",
        f"  kind:  {failure.kind.value}",
        f"  ran:   {duration(seconds)}",
    ]
    if failure.detail:
        lines.append("  detail:")
        lines += [f"    {line}" for line in failure.detail.splitlines()[-_DETAIL_LINES:]]
    lines.append(f"  next:  {advice(failure, host, code_dir)}")
    return "\n".join(lines)


def advice(failure: Failure, host: str, code_dir: str) -> str:
    """Return what to do about a failure, in one line.

    Args:
        failure: the cause.
        host: the host whose log is being read.
        code_dir: where the user's code is.
    """
    text = _ADVICE.get(failure.kind) or _OF_A_PROGRAM.get(failure.role)
    if text is not None:
        return text.format(host=failure.host)
    if failure.host != host:
        return f"read the log of {failure.host} above its own last lines"
    return f"read the lines above; the code is in {code_dir}"


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
