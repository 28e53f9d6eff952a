"""One host in a container: the ways in, and the limits that only a container sets."""

import io
import zipfile
from pathlib import Path

from tests.support.containers import Engine

SAVE = """
import mxnet as mx
from sagemaker_mxnet_training.training_utils import save

net = mx.gluon.nn.HybridSequential()
net.add(mx.gluon.nn.Dense(2))
net.initialize()
net.hybridize()
net(mx.nd.ones((1, 3)))
save("/opt/ml/model", net)
"""
MODEL = {"model-symbol.json", "model-0000.params", "model-shapes.json"}


def _wheel() -> bytes:
    content, info = io.BytesIO(), "helper-1.0.dist-info"
    with zipfile.ZipFile(content, "w") as wheel:
        wheel.writestr("helper.py", "ANSWER = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: helper\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return content.getvalue()


def models(base: Path) -> set:
    return {path.name for path in (base / "model").iterdir()}


def test_variables_alone(engine: Engine) -> None:
    (host,) = engine.job(1, SAVE, kvstore=False)
    assert host.wait() == 0, host.log()
    assert host.succeeded
    assert models(host.base) == MODEL


def test_configuration_files(engine: Engine) -> None:
    """The files of SageMaker and the SDK below ``/opt/ml``, with code at ``/opt/ml/code``."""
    base = engine.folder / "algo-1"
    config = base / "input" / "config"
    config.mkdir(parents=True)
    (base / "code").mkdir()
    (base / "code" / "train.py").write_text(SAVE)
    (config / "resourceconfig.json").write_text('{"current_host": "algo-1", "hosts": ["algo-1"]}')
    (config / "hyperparameters.json").write_text('{"sagemaker_program": "\\"train.py\\""}')
    host = engine.start("algo-1", "train", options=["--hostname", "algo-1"])
    assert host.wait() == 0, host.log()
    assert models(host.base) == MODEL


def test_read_only_root(engine: Engine) -> None:
    """Only ``/opt/ml`` and ``/tmp`` can be written."""
    (host,) = engine.job(1, SAVE, options=["--read-only", "--tmpfs", "/tmp:exec"])
    assert host.wait() == 0, host.log()
    assert models(host.base) == MODEL


def test_another_user_installs_requirements(engine: Engine) -> None:
    """A user without a name in the image; what the job writes is theirs."""
    base = engine.folder / "algo-1"
    base.mkdir()
    base.chmod(0o777)
    engine.folder.chmod(0o755)
    options = ["--user", "12345:12345", "-e", "HOME=/tmp"]
    files = {
        "helper-1.0-py3-none-any.whl": _wheel(),
        "requirements.txt": b"./helper-1.0-py3-none-any.whl\n",
    }
    script = "import helper; print(f'helper {helper.ANSWER}')"
    (host,) = engine.job(1, script, kvstore=False, options=options, files=files)
    assert host.wait() == 0, host.log()
    assert "helper 42" in host.log()
    written = [path for path in host.base.rglob("*") if path.is_file()]
    assert {path.stat().st_uid for path in written} == {12345}


def test_without_network_nothing_is_looked_for(engine: Engine) -> None:
    """Network isolation, on one host."""
    base = engine.folder / "algo-1" / "code"
    base.mkdir(parents=True)
    (base / "train.py").write_text(SAVE)
    env = {"SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-1", "SM_USER_ENTRY_POINT": "train.py"}
    host = engine.start("algo-1", "train", env=env, options=["--network", "none"])
    assert host.wait() == 0, host.log()


def test_memory_limit_is_the_cause(engine: Engine) -> None:
    """The kernel kills a script that outgrows the container, and the failure names the limit."""
    script = """
    hoard = []
    while True:
        hoard.append(bytearray(16 << 20))
    """
    (host,) = engine.job(
        1, script, kvstore=False, options=["--memory", "300m", "--memory-swap", "300m"]
    )
    assert host.wait() == 137, host.log()
    assert host.failure.startswith(
        "algo-1: worker failed: out of memory: the container's limit of 300 MiB"
    ), host.failure


def test_sagemaker_trainings_own_train(engine: Engine) -> None:
    """Another entrypoint in our image: sagemaker-training's, which reads one variable."""
    base = engine.folder / "algo-1"
    config = base / "input" / "config"
    config.mkdir(parents=True)
    (base / "code").mkdir()
    (base / "code" / "train.py").write_text("raise ValueError('boom')")
    (config / "resourceconfig.json").write_text('{"current_host": "algo-1", "hosts": ["algo-1"]}')
    (config / "inputdataconfig.json").write_text("{}")
    (config / "hyperparameters.json").write_text('{"sagemaker_program": "\\"train.py\\""}')
    host = engine.start("algo-1", options=["--entrypoint", "train", "--hostname", "algo-1"])
    assert host.wait() == 1, host.log()
    assert host.failure.startswith("algo-1: worker failed: ValueError: boom (exit status 1)")


def test_preinstalled_keras_and_onnx(engine: Engine) -> None:
    """Keras trains with MXNet, and its model is exported, without a requirements file."""
    script = """
    import keras
    import numpy as np

    model = keras.models.Sequential()
    model.add(keras.layers.Conv2D(4, (3, 3), activation="relu", input_shape=(8, 8, 1)))
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(2, activation="softmax"))
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    images = np.random.rand(64, 8, 8, 1).astype("float32")
    labels = keras.utils.to_categorical(images.mean((1, 2, 3)) > 0.5, 2)
    assert keras.backend.backend() == "mxnet"
    stop = keras.callbacks.EarlyStopping("loss")
    model.fit(images, labels, epochs=2, batch_size=32, verbose=0, callbacks=[stop])
    names, shapes = keras.models.save_mxnet_model(model, "/opt/ml/model/model")

    from mxnet.contrib import onnx
    files = [f"/opt/ml/model/model-{name}" for name in ("symbol.json", "0000.params")]
    onnx.export_model(*files, [(1, 8, 8, 1)], np.float32, "/opt/ml/model/model.onnx")
    """
    (host,) = engine.job(1, script, kvstore=False)
    assert host.wait(120) == 0, host.log()
    assert models(host.base) == {"model-symbol.json", "model-0000.params", "model.onnx"}
