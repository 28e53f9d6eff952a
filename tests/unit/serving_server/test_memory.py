"""How much memory a model needs, and ends that the lack of it brings."""

import signal
from pathlib import Path

import pytest

from sagemaker_mxnet_serving import endings, memory
from sagemaker_mxnet_toolkit.container import cgroup
from sagemaker_mxnet_toolkit.failure import FailureKind


def test_each_copy_of_a_model_needs_its_own_memory(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"x" * 1000)
    assert memory.needed(str(tmp_path)) == 2000 + memory.PROCESS_BYTES
    assert memory.needed(str(tmp_path), 3) == 3 * memory.needed(str(tmp_path))


@pytest.mark.parametrize(
    ("kills", "kind"), [([0, 1], FailureKind.OUT_OF_MEMORY), ([1, 1], FailureKind.MODEL)]
)
def test_a_kill_of_the_kernels_for_memory_is_of_its_own_kind(
    monkeypatch: pytest.MonkeyPatch, kills: "list[int]", kind: FailureKind
) -> None:
    monkeypatch.setattr(cgroup, "oom_kills", iter(kills).__next__)
    how = endings.Endings().how(-signal.SIGKILL)
    assert endings.kind_of(how, FailureKind.MODEL) is kind
