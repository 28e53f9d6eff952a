"""Options of Open MPI: set, ignored, warned about or refused."""

import pytest

from sagemaker_mxnet_training.config.mpi_options import MpiOptions, parse


def test_variables_are_set_for_workers() -> None:
    options = parse("-x NCCL_DEBUG=INFO --x HOROVOD_TIMELINE=/a=b -x EMPTY=", {})
    expected = {"NCCL_DEBUG": "INFO", "HOROVOD_TIMELINE": "/a=b", "EMPTY": ""}
    assert options == MpiOptions(variables=expected)


@pytest.mark.parametrize("text", ["--NCCL_DEBUG=WARN", "--NCCL_DEBUG WARN"])
def test_nccl_debug_is_set(text: str) -> None:
    assert parse(text, {}) == MpiOptions(variables={"NCCL_DEBUG": "WARN"})


def test_inherited_variable_needs_nothing() -> None:
    assert parse("-x PATH", {"PATH": "/bin"}) == MpiOptions()
    assert parse("-x MISSING", {}).notes == ("-x MISSING: ignored, since this variable is not set",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-verbose --verbose -v",
        "--tag-output --display-map --report-bindings",
        "--allow-run-as-root --oversubscribe",
        "-bind-to none -map-by slot",
    ],
)
def test_options_without_effect_are_ignored(text: str) -> None:
    assert parse(text, {}) == MpiOptions()


def test_parameters_of_open_mpi_are_noted_in_one_line() -> None:
    text = "-mca btl_vader_single_copy_mechanism none --mca orte_base_help_aggregate -1"
    (note,) = parse(text, {}).notes
    assert "btl_vader_single_copy_mechanism, orte_base_help_aggregate" in note


@pytest.mark.parametrize(
    "text", ["--output-filename /tmp/out", "-bind-to core", "-map-by node", "--rank-by node"]
)
def test_option_that_is_not_done_is_a_warning(text: str) -> None:
    options = parse(text, {})
    assert options.faults == options.notes == ()
    (warning,) = options.warnings
    assert warning.startswith(f"{text}: not supported")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("-np 4", "-np"),
        ("-n 4", "-n"),
        ("-H a,b", "-H"),
        ("--host a", "--host"),
        ("--hostfile hosts", "--hostfile"),
        ("other.py", "other.py"),
        ("--unknown", "--unknown"),
        ("---", "---"),
        ("-x HOROVOD_RANK=1", "HOROVOD_RANK"),
        ("-x HOROVOD_CONTROLLER=mpi", "HOROVOD_CONTROLLER"),
        ("-x OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"),
        ("-x", "-x"),
        ("-mca", "-mca"),
        ("-x -v", "-x"),
    ],
)
def test_rejected_option_is_named(text: str, word: str) -> None:
    (fault,) = parse(text, {}).faults
    assert word in fault


def test_all_rejected_options_are_named() -> None:
    faults = parse("-np 4 --bogus -x A=1 -H a", {}).faults
    assert [fault.partition(":")[0] for fault in faults] == ["-np", "--bogus", "-H"]
