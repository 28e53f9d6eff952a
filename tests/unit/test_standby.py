"""Processes on standby: when there are any, and what they are started with."""

import pytest

from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_toolkit.processes.process import ProcessSpec
from sagemaker_mxnet_training.host import plan
from sagemaker_mxnet_training.host.standby import PROCESS_MEMORY, wanted

GIB = 2**30


@pytest.mark.parametrize(
    ("setting", "cpus", "processes", "memory", "expected"),
    [
        ("on", 1, 9, GIB, True),
        ("off", 96, 1, 1024 * GIB, False),
        ("auto", 2, 3, 16 * GIB, True),
        ("auto", 2, 3, 8 * GIB, False),
        ("auto", 1, 3, 16 * GIB, False),
    ],
)
def test_they_wait_where_that_costs_little(
    setting: str, cpus: int, processes: int, memory: int, expected: bool
) -> None:
    assert wanted(setting, cpus, processes, memory) is expected
    assert 3 * PROCESS_MEMORY < 0.05 * 16 * GIB


def test_nothing_in_their_environment_makes_the_import_run_a_role() -> None:
    variables = {
        "DMLC_ROLE": "server",
        "DMLC_PS_ROOT_URI": "10.0.0.1",
        "MALLOC_MMAP_MAX_": "0",
        "SAGEMAKER_MXNET_RESUME": "checkpoint-000001-step-1.zip",
        "SAGEMAKER_MXNET_RESTART_COUNT": "1",
    }
    role = ProcessSpec(Role.SERVER, "server", program.argv("a.module"), variables, "/")
    waits = plan.standby(role)
    assert waits.environment == {"MALLOC_MMAP_MAX_": "0"}
    assert (waits.role, waits.stdin_open) == (Role.STANDBY, True)


def test_what_a_command_line_runs_is_known_for_programs_of_ours_alone() -> None:
    assert program.module_of(program.argv("a.module", "x")) == ("a.module", ("x",))
    assert program.module_of(program.argv("a.module", wait=True)) == ("a.module", ())
    assert program.module_of(("/bin/sh", "-c", "train.sh", "a.module")) is None
