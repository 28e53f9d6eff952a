"""The steps of a job on one host, alone: what leads to which."""

import os
import selectors
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator

import pytest

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster.events import (
    DrainRoles,
    End,
    HostState,
    Restart,
    Start,
    Stop,
    StopScripts,
    Verdict,
)
from sagemaker_mxnet_training.config.configuration import resolve
from sagemaker_mxnet_training.host.steps import Steps
from sagemaker_mxnet_training.host.timeline import HostPhase, Timeline
from tests.support.fakes import checked


class EndedChild:
    """A process without a report."""

    def __init__(self, role: Role, returncode: int, stopped: bool) -> None:
        self.spec = SimpleNamespace(role=role, name=role.value, rank=None)
        self.pid = 2**22 + 1
        self.returncode = returncode
        self.started = 0.0
        self.signals: list = []
        self.failure = self.failure_kind = None
        self.failed_at = None
        self.stopped = stopped
        self.stderr = SimpleNamespace(text=lambda: "")


class Host:
    """The steps of a job of one host, whose coordinator only notes what is reported."""

    def __init__(self, directory: Path) -> None:
        (directory / "code").mkdir()
        (directory / "code" / "train.py").touch()
        environ = {"SAGEMAKER_BASE_DIR": str(directory), "SM_USER_ENTRY_POINT": "train.py"}
        self.selector = selectors.DefaultSelector()
        self.timeline = Timeline("algo-1")
        log = Log("algo-1", fd=os.open(os.devnull, os.O_WRONLY))
        self.steps = Steps(checked(resolve(environ)), log, self.timeline, self.selector, {})
        self.reported: list = []
        coordinator: Any = SimpleNamespace(
            report_state=lambda state: self.reported.append(state.name),
            report_ready=lambda resume: self.reported.append(f"READY {resume}".strip()),
            report_failure=lambda failure, when: self.reported.append(failure.kind),
            report_idle=lambda idle: None,
        )
        self.steps.coordinator = coordinator
        self.steps.attempt._coordinator = coordinator

    def exited(self, role: Role, code: int, stopped: bool = False) -> None:
        """Let a process end that has never been."""
        child: Any = EndedChild(role, code, stopped)
        self.steps._on_exit(child)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.selector.close()


def test_what_is_not_needed_is_passed_over(host: Host) -> None:
    host.steps.begin()
    assert host.reported == ["READY"]
    assert host.timeline.current is HostPhase.JOIN


def test_a_fault_is_reported_and_nothing_begins(host: Host) -> None:
    host.steps.begin("configuration: SM_HOSTS is no list")
    assert host.reported == [FailureKind.CONFIGURATION]
    assert host.timeline.current is None


def test_one_step_leads_to_the_next(host: Host) -> None:
    host.exited(Role.FETCH, 0)
    assert host.reported == ["READY"], "nothing is to be installed"
    host.exited(Role.INSTALL, 0)
    assert host.reported == ["READY", "READY"]


@pytest.mark.parametrize("role", [Role.FETCH, Role.INSTALL])
def test_a_step_that_failed_leads_nowhere(host: Host, role: Role) -> None:
    host.exited(role, 1)
    assert host.reported == [FailureKind.EXIT_STATUS]


@pytest.mark.parametrize("role", [Role.FETCH, Role.INSTALL])
@pytest.mark.parametrize("code", [0, 1, -9])
def test_end_of_a_step_after_its_reported_failure_is_ignored(
    host: Host, role: Role, code: int
) -> None:
    host.exited(role, code, stopped=True)
    assert host.reported == []
    assert host.timeline.current is None


def test_after_a_stop_no_step_follows(host: Host) -> None:
    host.steps.obey(StopScripts(Stop("algo-2", 15)))
    assert host.reported == ["FINISHED"]
    host.exited(Role.FETCH, 0)
    host.steps.obey(Start(1))
    assert host.reported == ["FINISHED"]
    assert not host.steps.table.living()


def test_the_first_verdict_stays(host: Host) -> None:
    failure = Failure("algo-2", Role.WORKER, "x", kind=FailureKind.EXCEPTION)
    host.steps.obey(End(Verdict(Outcome.STOP)))
    host.steps.obey(End(Verdict(Outcome.FAILURE, failure)))
    assert host.steps.verdict == Verdict(Outcome.STOP)


def test_a_worker_that_ends_after_the_verdict_begins_no_phase(host: Host) -> None:
    host.steps.obey(StopScripts(Stop("algo-1", 15)))
    host.steps.attempt.finished = False
    host.steps.obey(End(Verdict(Outcome.STOP)))
    host.exited(Role.WORKER, -9, stopped=True)
    assert host.timeline.current is HostPhase.END


def test_the_result_is_prepared_beside_the_loop(host: Host, tmp_path: Path) -> None:
    host.steps._on_empty()
    for key, mask in host.selector.select(10):
        key.data(mask)
    assert host.reported == ["DRAINED"]
    assert (tmp_path / "output" / ".success.prepared").exists()


def test_a_result_that_cannot_be_prepared_is_a_failure(host: Host, tmp_path: Path) -> None:
    (tmp_path / "output").write_text("in the way")
    host.steps._on_empty()
    for key, mask in host.selector.select(10):
        key.data(mask)
    assert host.reported == [FailureKind.OUTPUT]


def test_a_disk_that_does_not_answer_is_a_failure_in_the_end(host: Host) -> None:
    host.steps._on_empty()
    assert host.steps._preparation is not None
    started = host.steps._preparation._wait._started
    host.steps.tick(started + 599.5)
    assert host.reported == []
    host.steps.tick(started + 600.5)
    assert host.reported == [FailureKind.OUTPUT]


FAILURE = Failure("algo-2", Role.WORKER, "boom", kind=FailureKind.EXCEPTION)


def test_another_attempt_begins_when_nothing_is_left_of_the_last(host: Host) -> None:
    host.steps.begin()
    before = host.steps.attempt
    host.steps.obey(Restart(2, FAILURE))
    assert host.timeline.current is HostPhase.CLEAR
    host.exited(Role.WORKER, -9, stopped=True)
    host.steps.tick(1.0)
    assert host.steps.attempt is not before
    assert host.reported == ["READY", "CLEAR", "READY"]
    assert host.timeline.current is HostPhase.JOIN


def test_what_an_earlier_attempt_still_says_counts_for_nothing(host: Host) -> None:
    host.steps.begin()
    host.steps.obey(Restart(2, FAILURE))
    child: Any = EndedChild(Role.WORKER, 0, stopped=True)
    for event in ("started", "stepped", "checkpoint", "finished"):
        host.steps._on_event(child, {"event": event})
    host.exited(Role.WORKER, 0, stopped=True)
    assert host.reported == ["READY", "CLEAR"]


def test_a_host_that_is_still_getting_ready_goes_on_with_that(host: Host) -> None:
    host.steps.obey(Restart(2, FAILURE))
    host.steps.tick(1.0)
    assert host.reported == []
    host.exited(Role.INSTALL, 0)
    assert host.reported == ["READY"]


def test_what_a_host_in_preparation_has_started_is_left_alone(host: Host) -> None:
    """A host that came back installs requirements, with processes below pip's, in a restart."""
    swept = []
    host.steps.table.sweep = lambda now, grace: bool(swept.append(now))  # type: ignore[method-assign]
    host.steps.obey(Restart(2, FAILURE))
    host.steps.tick(1.0)
    assert not swept
    assert not host.steps.attempt.failed


def test_checkpoint_chosen_by_an_earlier_attempt_is_not_reported(
    host: Host, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint-000001-step-7.zip").write_bytes(b"damaged")
    host.steps.begin()
    host.steps.obey(Restart(2, FAILURE))
    for key, mask in host.selector.select(10):
        key.data(mask)
    assert host.reported == ["CLEAR"], "it is not ready: it has processes to end"


def test_a_stop_during_a_restart_is_not_forgotten(host: Host) -> None:
    host.steps.begin()
    host.steps.obey(Restart(2, FAILURE))
    host.steps.obey(StopScripts(Stop("algo-1", 15)))
    host.steps.tick(1.0)
    assert host.reported == ["READY", "CLEAR", "FINISHED"]


def test_result_of_a_failed_attempt_is_dropped(host: Host) -> None:
    host.steps.begin()
    host.steps.obey(DrainRoles())
    host.steps._on_empty()
    host.steps.obey(Restart(2, FAILURE))
    for key, mask in host.selector.select(10):
        key.data(mask)
    assert "DRAINED" not in host.reported


def test_events_of_processes_are_told(host: Host) -> None:
    child: Any = EndedChild(Role.WORKER, 0, stopped=False)
    for event in ("stepped", "checkpointing", "checkpoint", "unknown"):
        host.steps._on_event(child, {"event": event})
    steps = (HostState.STEPPED, HostState.CHECKPOINTING, HostState.CHECKPOINTED)
    assert host.reported == [step.name for step in steps]


def test_the_first_host_chooses_the_checkpoint_to_go_on_from(host: Host, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint-000001-step-7.zip").write_bytes(b"damaged")
    host.steps.begin()
    assert host.reported == []
    for key, mask in host.selector.select(10):
        key.data(mask)
    assert host.reported == ["READY"], "that one is damaged, and there is no other"
