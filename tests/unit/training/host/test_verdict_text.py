"""Messages about the end of a job."""

import pytest

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_training.cluster.events import Verdict
from sagemaker_mxnet_training.host import verdict_text

EXCEPTION = FailureKind.EXCEPTION
BOOM = Failure("algo-2", Role.WORKER, "ValueError: boom", EXCEPTION, 3, "line 1\nline 2")


def test_failure_block_has_everything_once() -> None:
    block = verdict_text.failure_block(
        Verdict(Outcome.FAILURE, BOOM), "algo-2", 12.34, "/opt/ml/code"
    )
    assert block.splitlines() == [
        "the job FAILED",
        "  cause: algo-2: worker failed: ValueError: boom (exit status 3)",
        "  host:  algo-2 (this host)",
        "  role:  worker",
        "  kind:  exception",
        "  ran:   12.3 s",
        "  detail:",
        "    line 1",
        "    line 2",
        "  next:  read the log above; the code is in /opt/ml/code",
    ]


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (FailureKind.EXCEPTION, "read the log of algo-2"),
        (FailureKind.EXIT_STATUS, "read the log of algo-2"),
        (FailureKind.SIGNAL, "read the log of algo-2"),
        (FailureKind.OUT_OF_MEMORY, "memory of the container"),
        (FailureKind.LOST, "the machine of algo-2"),
        (FailureKind.FROZEN, "SIGSTOP"),
        (FailureKind.STALLED, "sagemaker_mxnet_stall_timeout"),
        (FailureKind.UNEVEN, "same number of batches"),
        (FailureKind.JOIN, "all hosts were started"),
        (FailureKind.CONFIGURATION, "settings that the cause names"),
        (FailureKind.CODE, "sagemaker_submit_directory"),
        (FailureKind.REQUIREMENTS, "requirements.txt"),
        (FailureKind.NETWORK, "port or the address"),
        (FailureKind.OUTPUT, "space on the output volume of algo-2"),
        (FailureKind.INTERNAL, "please report it"),
    ],
)
def test_advice_follows_from_the_kind_alone(kind: FailureKind, advice: str) -> None:
    """For every reason."""
    for reason in ("ValueError: boom", "internal error: x", "out of memory: x", "lost: x"):
        failure = Failure("algo-2", Role.WORKER, reason, kind, 1)
        assert advice in verdict_text.advice(failure, "algo-1", "/code")


def test_every_kind_has_advice() -> None:
    for kind in FailureKind:
        for host in ("algo-1", "algo-2"):
            failure = Failure("algo-1", Role.WORKER, "x", kind, 1)
            assert verdict_text.advice(failure, host, "/code")


def test_exceptions_here_are_above_and_in_the_code() -> None:
    assert verdict_text.advice(BOOM, "algo-2", "/code").endswith("the code is in /code")


@pytest.mark.parametrize(("role", "advice"), [(Role.FETCH, "submit"), (Role.INSTALL, "require")])
def test_programs_of_ours_that_were_killed_have_advice(role: Role, advice: str) -> None:
    failure = Failure("algo-1", role, "killed by SIGKILL", FailureKind.SIGNAL, 137)
    assert advice in verdict_text.advice(failure, "algo-1", "/code")


def test_long_detail_keeps_its_end() -> None:
    detail = "\n".join(f"line {n}" for n in range(100))
    long = Failure("algo-1", Role.WORKER, "x", EXCEPTION, 1, detail)
    words = verdict_text.failure_block(Verdict(Outcome.FAILURE, long), "algo-1", 1.0, "/code")
    assert "line 99" in words
    assert "line 79" not in words


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (Outcome.SUCCESS, "the job SUCCEEDED after 2 min 05 s; exit status 7"),
        (Outcome.STOP, "the job was STOPPED after 2 min 05 s; exit status 7"),
        (Outcome.FAILURE, "the job failed after 2 min 05 s; exit status 7"),
    ],
)
def test_last_line(outcome: Outcome, line: str) -> None:
    assert verdict_text.closing_line(outcome, 125.2, 7) == line


AGAIN = Verdict(Outcome.FAILURE, BOOM, 2, "algo-1: server failed: killed by SIGKILL")


def test_failure_mentions_earlier_restarts_and_the_first_cause() -> None:
    told = "after 2 restarts; the first: algo-1: server failed: killed by SIGKILL"
    lines = verdict_text.failure_text(AGAIN).splitlines()
    assert lines[:2] == [BOOM.headline(), told]
    assert lines[2:] == BOOM.detail.splitlines()
    assert told in verdict_text.failure_block(AGAIN, "algo-2", 1.0, "/code")
    assert verdict_text.failure_text(Verdict(Outcome.FAILURE, BOOM)) == BOOM.text()


def test_the_restarts_before_a_success_are_told() -> None:
    assert (
        verdict_text.headline(Outcome.SUCCESS, 8.4, 1) == "job SUCCEEDED after 8.4 s and 1 restart"
    )
    line = verdict_text.closing_line(Outcome.SUCCESS, 8.4, 0, 2)
    assert line == "the job SUCCEEDED after 8.4 s and 2 restarts; exit status 0"
