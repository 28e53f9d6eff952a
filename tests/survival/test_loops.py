"""Loops that are written in other ways than the example's, killed in the middle, with real MXNet.

``tests/unit/training/checkpoints/test_loop.py`` has many more, without MXNet.
"""

import re
import signal
from pathlib import Path

import pytest

from tests.support.jobs import Ended, job

from .runs import matrix, said

BEGIN = """
import hashlib
import mxnet as mx
from mxnet import autograd, gluon
from sagemaker_mxnet_training.checkpoints import Checkpoint

mx.random.seed(3)
first = os.environ["SAGEMAKER_MXNET_RESTART_COUNT"] == "0"
kills = os.environ.get("KILL_AT", "0")
steps = 0


def make(kind):
    net = gluon.nn.Dense(3, in_units=4)
    net.initialize(mx.init.Xavier())
    return net, gluon.Trainer(net.collect_params(), kind, {"learning_rate": 0.01})


def source(base, count):
    return [mx.nd.array([[base, number, 1, 2]]) for number in range(count)]


def train(net, trainer, batch):
    global steps
    with autograd.record():
        loss = (net(batch) ** 2).sum()
    loss.backward()
    trainer.step(1)
    steps += 1
    if first and str(steps) == kills:
        checkpoint._manager._writer.join()
        os.kill(os.getpid(), signal.SIGKILL)


def digest(*nets):
    arrays = [each.weight.data().asnumpy().tobytes() for each in nets]
    return hashlib.sha256(b"".join(arrays)).hexdigest()[:16]


net, trainer = make("adam")
"""

LOOPS = {
    "own loop over epochs": """
checkpoint = Checkpoint(net, trainer, every=2)
for epoch in range(3):
    for batch in checkpoint.batches(source(epoch, 6)):
        train(net, trainer, batch)
say("weights", digest(net), ".")
""",
    "two sources, break and validation": """
checkpoint = Checkpoint(net, trainer, every=2)
for epoch in checkpoint.epochs(3):
    for number, batch in enumerate(checkpoint.batches(source(epoch, 6))):
        train(net, trainer, batch)
        if float(batch[0, 1].asscalar()) == 3:
            break
    for batch in checkpoint.batches(source(epoch + 10, 3)):
        train(net, trainer, batch)
    for batch in checkpoint.batches(source(epoch, 2)):
        net(batch).wait_to_read()
say("weights", digest(net), ".")
""",
    "accumulated gradients": """
net.collect_params().setattr("grad_req", "add")
checkpoint = Checkpoint(net, trainer, every=2)
for epoch in checkpoint.epochs(3):
    net.collect_params().zero_grad()
    for batch in checkpoint.batches(source(epoch, 6)):
        if int(batch[0, 1].asscalar()) % 3 == 2:
            train(net, trainer, batch)
            net.collect_params().zero_grad()
        else:
            with autograd.record():
                loss = (net(batch) ** 2).sum()
            loss.backward()
say("weights", digest(net), ".")
""",
    "two networks and trainers": """
other, its_trainer = make("sgd")
checkpoint = Checkpoint([net, other], [trainer, its_trainer], every=2)
for epoch in checkpoint.epochs(3):
    for batch in checkpoint.batches(source(epoch, 6)):
        train(net, trainer, batch)
        train(other, its_trainer, -batch)
say("weights", digest(net, other), ".")
""",
}


def run(path: Path, body: str, kill_at: int = 0) -> Ended:
    with job(path, BEGIN + body, env={"KILL_AT": str(kill_at)}) as cluster:
        end: Ended = cluster[1].ended()
    return end


@pytest.mark.parametrize("name", list(LOOPS))
def test_killed_loop_computes_the_same(tmp_path: Path, name: str) -> None:
    whole = run(tmp_path / "whole", LOOPS[name])
    assert whole.success
    for kill_at in matrix([1, 3, 4, 5], [5]):
        end = run(tmp_path / str(kill_at), LOOPS[name], kill_at)
        assert (end.status, end.success) == (0, True), end.output
        assert "restarting (attempt 2)" in end.output
        assert said("weights", end) == said("weights", whole)


SECOND = """
other, its_trainer = make("adam")
checkpoint = Checkpoint(net, trainer)
Checkpoint(other, its_trainer)
"""

ZIPPED = """
checkpoint = Checkpoint(net, trainer)
for epoch in checkpoint.epochs(3):
    for batch, _ in zip(checkpoint.batches(source(0, 6)), checkpoint.batches(source(1, 6))):
        train(net, trainer, batch)
"""

STATE = """
checkpoint = Checkpoint(net, trainer)
checkpoint.state["net"] = net
for epoch in checkpoint.epochs(3):
    for batch in checkpoint.batches(source(0, 6)):
        train(net, trainer, batch)
        say("step", checkpoint.step + 1, ".")
"""


@pytest.mark.parametrize(
    "body, cause",
    [
        (SECOND, "this script already has a Checkpoint in "),
        (ZIPPED, r"batches: the previous loop .* batches\(zip\(a, b\)\)"),
        (STATE, "checkpoint.state cannot be stored"),
    ],
)
def test_script_error_is_reported_immediately(tmp_path: Path, body: str, cause: str) -> None:
    end = run(tmp_path, body)
    refused(end, cause)
    assert "step 2 " not in end.output


def refused(end: Ended, cause: str) -> None:
    """Check that a job failed immediately, without a restart."""
    assert (end.status, end.success) == (1, False)
    assert re.search(cause, end.cause), end.cause
    assert "next:  change the script or the directory according to the cause" in end.output
    assert "restarting (attempt 2)" not in end.output


RUNNING = """
checkpoint = Checkpoint(net, trainer, directory=os.environ["SHARED"])
say("made", ".")
for epoch in checkpoint.epochs(1):
    for batch in checkpoint.batches(source(0, 6)):
        train(net, trainer, batch)
        while "WAIT" in os.environ:
            time.sleep(0.05)
"""


def test_directory_of_a_running_job_is_rejected(tmp_path: Path) -> None:
    """A later job may use it, however the first one ended."""
    shared = {"SHARED": str(tmp_path / "shared")}
    with job(tmp_path / "a", BEGIN + RUNNING, env={**shared, "WAIT": "1"}) as one:
        one[1].wait_for(r"^made \.")
        with job(tmp_path / "b", BEGIN + RUNNING, env=shared) as other:
            refused(other[1].ended(), "shared is in use by process .*: wait until it ends")
        one[1].kill("entrypoint", signal.SIGKILL)
        with job(tmp_path / "c", BEGIN + RUNNING, env=shared) as later:
            end = later[1].ended()
    assert (end.status, end.success) == (0, True), end.output


def test_resuming_with_another_optimizer_fails(tmp_path: Path) -> None:
    body = BEGIN + LOOPS["own loop over epochs"]
    with job(tmp_path, body) as cluster:
        assert cluster[1].ended().success
    with job(tmp_path, body.replace('make("adam")', 'make("sgd")')) as cluster:
        end = cluster[1].ended()
    refused(end, "of the optimizer Adam, but this script uses SGD")


def test_uneven_batches_are_not_dropped_by_a_restart(tmp_path: Path) -> None:
    """The first host writes the last checkpoint, and then the other has six batches left."""
    script = f"""{BEGIN}
net, _ = make("sgd")
trainer = gluon.Trainer(net.collect_params(), "sgd", {{"learning_rate": 0.01}}, kvstore="dist_sync")
checkpoint = Checkpoint(net, trainer)
for epoch in checkpoint.epochs(3):
    for batch in checkpoint.batches(source(epoch, 10 if host == "algo-1" else 12)):
        train(net, trainer, batch)
say("the end")
"""
    env = {"SAGEMAKER_MXNET_STALL_TIMEOUT": "4"}
    with job(tmp_path, script, 2, parameter_server=True, env=env) as cluster:
        ends = cluster.ended(60)
    for end in ends:
        assert end.status == 1, end.output
        assert "algo-2: worker failed: stalled" in str(end.failure)
        assert "restarting" not in end.output
