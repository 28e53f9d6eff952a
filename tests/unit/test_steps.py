"""The steps of a job on one host, alone: what leads to which."""

import os
import selectors
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator

import pytest

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster.coordination import Stop, Verdict
from sagemaker_mxnet_training.config.configuration import resolve
from sagemaker_mxnet_training.host.phase import HostPhase
from sagemaker_mxnet_training.host.steps import Steps
from sagemaker_mxnet_training.host.timeline import Timeline


class EndedChild:
    """A process that has said nothing."""

    def __init__(self, role: Role, returncode: int, stopped: bool) -> None:
        self.spec = SimpleNamespace(role=role, name=role.value)
        self.pid = 2**22 + 1
        self.returncode = returncode
        self.started = 0.0
        self.signals: list = []
        self.failure = None
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
        self.steps = Steps(resolve(environ).checked(), log, self.timeline, self.selector, {})
        self.reported: list = []
        coordinator: Any = SimpleNamespace(
            report_step=lambda step: self.reported.append(step.name),
            report_drained=lambda: self.reported.append("DRAINED"),
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
def test_a_step_whose_failure_was_reported_leads_nowhere_when_it_ends(
    host: Host, role: Role, code: int
) -> None:
    host.exited(role, code, stopped=True)
    assert host.reported == []
    assert host.timeline.current is None


def test_after_a_stop_no_step_follows(host: Host) -> None:
    host.steps.stop(Stop("algo-2", 15))
    assert host.reported == ["FINISHED"]
    host.exited(Role.FETCH, 0)
    host.steps.start(None)
    assert host.reported == ["FINISHED"]
    assert not host.steps.table.living()


def test_the_first_verdict_stays(host: Host) -> None:
    failure = Failure("algo-2", Role.WORKER, "x", kind=FailureKind.EXCEPTION)
    host.steps.end(Verdict(Outcome.STOP))
    host.steps.end(Verdict(Outcome.FAILURE, failure))
    assert host.steps.verdict == Verdict(Outcome.STOP)


def test_a_worker_that_ends_after_the_verdict_begins_no_phase(host: Host) -> None:
    host.steps.stop(Stop("algo-1", 15))
    host.steps.attempt.finished = False
    host.steps.end(Verdict(Outcome.STOP))
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
    assert host.steps._disk is not None
    host.steps.tick(host.steps._disk._started + 599.0)
    assert host.reported == []
    host.steps.tick(host.steps._disk._started + 600.0)
    assert host.reported == [FailureKind.OUTPUT]
