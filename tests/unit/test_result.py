"""Result files and last words."""

from pathlib import Path
from typing import Optional

import pytest

from sagemaker_mxnet_toolkit.failure import Failure, Outcome, Role
from sagemaker_mxnet_training.cluster.coordination import Verdict
from sagemaker_mxnet_training.host import result

BOOM = Failure("algo-2", Role.WORKER, "ValueError: boom", 3, "line 1\nline 2")


def names(directory: Path) -> list:
    return sorted(path.name for path in directory.iterdir())


def test_success_appears_at_its_commit(tmp_path: Path) -> None:
    output = tmp_path / "output"
    result.prepare_success(str(output))
    assert "success" not in names(output)
    result.commit_success(str(output))
    assert names(output) == ["success"]


def test_success_without_room_for_it_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("in the way")
    with pytest.raises(result.ResultError, match=r"cannot write the success file: .*output"):
        result.prepare_success(str(tmp_path / "output"))


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
    """Half a surrogate pair, as undecodable output gives it, must not cost the whole file."""
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
        (Outcome.FAILURE, Failure("algo-1", Role.SERVER, "lost", 137), "algo-1", 143, 1),
        (Outcome.FAILURE, Failure("algo-1", Role.WORKER, "odd", 0), "algo-1", 0, 1),
        (Outcome.FAILURE, Failure("algo-1", Role.ENTRYPOINT, "port"), "algo-1", None, 1),
    ],
)
def test_status(
    outcome: Outcome, failure: Optional[Failure], host: str, worker: Optional[int], status: int
) -> None:
    """The script's own where the script is the cause; 1 for everything else."""
    assert result.process_status(Verdict(outcome, failure), host, worker) == status


def test_last_words_say_everything_once(tmp_path: Path) -> None:
    words = result.last_words(BOOM, "algo-2", 12.34, "/opt/ml/code").splitlines()
    assert words == [
        "the job FAILED",
        "  cause: algo-2: worker failed: ValueError: boom (exit status 3)",
        "  host:  algo-2 (this host)",
        "  role:  worker",
        "  ran:   12.3 s",
        "  detail:",
        "    line 1",
        "    line 2",
        "  next:  read the lines above; the code is in /opt/ml/code",
    ]


@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        (BOOM, "read the log of algo-2"),
        (Failure("algo-1", Role.INSTALL, "no pandas", 1), "requirements.txt"),
        (Failure("algo-1", Role.FETCH, "no archive", 1), "sagemaker_submit_directory"),
        (Failure("algo-1", Role.ENTRYPOINT, f"{result.INTERNAL}: x"), "please report it"),
        (Failure("algo-1", Role.ENTRYPOINT, "port 8000 is taken"), "what was expected"),
        (Failure("algo-2", Role.ENTRYPOINT, "lost"), "the machine of algo-2"),
        (Failure("algo-2", Role.WORKER, "out of memory: ...", 137), "more memory"),
        (Failure("algo-1", Role.SERVER, "killed by SIGKILL", 137), "read the lines above"),
    ],
)
def test_advice_is_for_the_cause(failure: Failure, advice: str) -> None:
    assert advice in result.last_words(failure, "algo-1", 1.0, "/code").splitlines()[-1]


def test_long_detail_keeps_its_end() -> None:
    long = Failure("algo-1", Role.WORKER, "x", 1, "\n".join(f"line {n}" for n in range(100)))
    words = result.last_words(long, "algo-1", 1.0, "/code")
    assert "line 99" in words
    assert "line 79" not in words
