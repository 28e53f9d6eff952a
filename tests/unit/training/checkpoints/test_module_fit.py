"""``Checkpoint.fit``, in one process with real MXNet."""

from pathlib import Path
from typing import Any, Iterator, List, Tuple

import numpy as np
import pytest

mx = pytest.importorskip("mxnet")

from sagemaker_mxnet_training.checkpoints import Checkpoint, CheckpointError, storage  # noqa: E402


def symbol() -> Any:
    hidden = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=3, name="hidden")
    return mx.sym.SoftmaxOutput(hidden, name="softmax")


class Buckets(mx.io.DataIter):  # type: ignore[misc]
    """Batches of two lengths, in turn."""

    def __init__(self) -> None:
        super().__init__(2)
        self.default_bucket_key = 8
        self.reset()

    provide_data = (mx.io.DataDesc("data", (2, 8)),)
    provide_label = (mx.io.DataDesc("softmax_label", (2,)),)

    def reset(self) -> None:
        self._keys = iter([8, 4, 8, 4])

    def next(self) -> Any:
        key = next(self._keys)
        data = mx.nd.ones((2, key)) * (key + 1)
        return mx.io.DataBatch(
            [data],
            [mx.nd.ones((2,))],
            bucket_key=key,
            provide_data=[mx.io.DataDesc("data", (2, key))],
            provide_label=list(self.provide_label),
        )


def bucketing() -> Tuple[Any, Any]:
    def of_length(key: int) -> Tuple[Any, List[str], List[str]]:
        total = mx.sym.sum(mx.sym.Variable("data"), axis=1, keepdims=True)
        hidden = mx.sym.FullyConnected(total, num_hidden=3, name="hidden")
        return mx.sym.SoftmaxOutput(hidden, name="softmax"), ["data"], ["softmax_label"]

    return mx.mod.BucketingModule(of_length, default_bucket_key=8), Buckets()


def plain() -> Tuple[Any, Any]:
    labels = mx.nd.array([0, 1, 2, 0, 1, 2, 0, 1])
    data = mx.io.NDArrayIter(mx.nd.random.normal(shape=(8, 5)), labels, 2, shuffle=True)
    return mx.mod.Module(symbol()), data


def weights(module: Any) -> Iterator[List[float]]:
    arguments, auxiliary = module.get_params()
    for array in [*arguments.values(), *auxiliary.values()]:
        yield array.asnumpy().ravel().tolist()


@pytest.mark.parametrize("make", [plain, bucketing])
@pytest.mark.parametrize("done", [1, 5])
def test_resumes(tmp_path: Path, make: Any, done: int) -> None:
    def fit(directory: str, stop: bool = False) -> Tuple[int, Any]:
        mx.random.seed(1)
        np.random.seed(1)
        module, data = make()
        storage.unlock()  # as the end of an earlier process does
        checkpoint = Checkpoint(directory=str(tmp_path / directory), every=1)

        def after_batch(_: Any) -> None:
            if stop and checkpoint.step == done:
                checkpoint._manager._writer.join()
                raise RuntimeError

        checkpoint.fit(
            module,
            data,
            num_epoch=3,
            optimizer="adam",
            initializer=mx.init.Xavier(),
            batch_end_callback=after_batch,
        )
        return checkpoint.step, module

    once = fit("once")[1]
    with pytest.raises(RuntimeError):
        fit("cut", stop=True)
    step, again = fit("cut")
    assert step == 12
    assert list(weights(again)) == list(weights(once))


def test_module_with_an_optimizer_is_rejected(tmp_path: Path) -> None:
    module, data = plain()
    module.fit(data, num_epoch=1)
    with pytest.raises(CheckpointError, match="a module without an optimizer"):
        Checkpoint(directory=str(tmp_path)).fit(module, data, num_epoch=1)


def test_invalid_number_of_epochs_is_an_error(tmp_path: Path) -> None:
    module, data = plain()
    with pytest.raises(CheckpointError, match="fit: num_epoch: expected .* 0 or more, got -1; "):
        Checkpoint(directory=str(tmp_path)).fit(module, data, num_epoch=-1)
