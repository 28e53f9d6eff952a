"""Result files and the exit status."""

from pathlib import Path
from typing import Optional

import pytest

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_training.cluster.events import Verdict
from sagemaker_mxnet_training.host import result

EXCEPTION = FailureKind.EXCEPTION
BOOM = Failure("algo-2", Role.WORKER, "ValueError: boom", EXCEPTION, 3, "line 1\nline 2")


def names(directory: Path) -> list:
    return sorted(path.name for path in directory.iterdir())


def test_success_appears_at_its_commit(tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert result.prepare_success(str(output)) is None
    assert "success" not in names(output)
    result.commit_success(str(output))
    assert names(output) == ["success"]


def test_success_without_room_for_it_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("in the way")
    problem = result.prepare_success(str(tmp_path / "output"))
    assert problem is not None
    assert problem.startswith(f"cannot write the success file: {tmp_path}")


def test_success_without_preparation_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        result.commit_success(str(tmp_path))


def test_failure_takes_the_place_of_a_prepared_success(tmp_path: Path) -> None:
    result.prepare_success(str(tmp_path))
    assert result.write_failure(str(tmp_path), BOOM.text()) is None
    assert names(tmp_path) == ["failure"]
    assert (tmp_path / "failure").read_text() == BOOM.text() + "\n"


def test_failure_of_the_script_is_kept(tmp_path: Path) -> None:
    (tmp_path / "failure").write_text("mine")
    assert result.write_failure(str(tmp_path), "ours") is None
    assert (tmp_path / "failure").read_text() == "mine"


def test_failure_with_any_text(tmp_path: Path) -> None:
    """Half a surrogate pair, from undecodable output, does not prevent writing the file."""
    assert result.write_failure(str(tmp_path), "bad \udcff text") is None
    assert (tmp_path / "failure").read_text() == "bad ? text\n"


def test_failure_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("in the way")
    trouble = result.write_failure(str(tmp_path / "output"), "text")
    assert trouble is not None
    assert str(tmp_path / "output" / "failure") in trouble


def test_failure_does_not_follow_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "failure").symlink_to("nowhere/at/all")
    assert result.write_failure(str(tmp_path), "text") is None
    assert names(tmp_path) == ["failure"]
    assert not (tmp_path / "failure").is_symlink()


def test_clear_removes_an_earlier_result_and_nothing_else(tmp_path: Path) -> None:
    result.prepare_success(str(tmp_path))
    for name in ("success", "failure", "data"):
        (tmp_path / name).touch()
    result.clear(str(tmp_path))
    assert names(tmp_path) == ["data"]
    result.clear(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("outcome", "failure", "host", "worker", "status"),
    [
        (Outcome.SUCCESS, None, "algo-1", 0, 0),
        (Outcome.STOP, None, "algo-1", 143, 143),
        (Outcome.STOP, None, "algo-1", 0, 0),
        (Outcome.STOP, None, "algo-1", None, 143),
        (Outcome.FAILURE, BOOM, "algo-2", 3, 3),
        (Outcome.FAILURE, BOOM, "algo-1", 143, 1),
        (
            Outcome.FAILURE,
            Failure("algo-1", Role.SERVER, "x", FailureKind.SIGNAL, 137),
            "algo-1",
            143,
            1,
        ),
        (Outcome.FAILURE, Failure("algo-1", Role.WORKER, "odd", EXCEPTION, 0), "algo-1", 0, 1),
        (
            Outcome.FAILURE,
            Failure("algo-1", Role.ENTRYPOINT, "port", kind=FailureKind.NETWORK),
            "algo-1",
            None,
            1,
        ),
    ],
)
def test_status(
    outcome: Outcome, failure: Optional[Failure], host: str, worker: Optional[int], status: int
) -> None:
    """The script's own where the script is the cause; 1 for everything else."""
    assert result.process_status(Verdict(outcome, failure), host, worker) == status
