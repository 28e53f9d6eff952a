"""How processes of a model ended, and what that means."""

import signal

import pytest

from sagemaker_mxnet_serving.front import endings
from sagemaker_mxnet_toolkit import container
from sagemaker_mxnet_toolkit.failure import FailureKind


@pytest.mark.parametrize(
    ("kills", "kind"), [([0, 1], FailureKind.OUT_OF_MEMORY), ([1, 1], FailureKind.MODEL)]
)
def test_out_of_memory_kill(
    monkeypatch: pytest.MonkeyPatch, kills: "list[int]", kind: FailureKind
) -> None:
    monkeypatch.setattr(container, "oom_kills", iter(kills).__next__)
    how = endings.Endings().how(-signal.SIGKILL)
    assert endings.kind_of(how, FailureKind.MODEL) is kind
