"""Scripts that use MXNet's kvstore in a job."""

import re
import sys
from pathlib import Path

import pytest

from tests.support.jobs import Ended, job

TRAINER = """
import mxnet as mx
from mxnet import autograd, gluon, nd

def network(prefix="net_"):
    net = gluon.nn.Dense(1, in_units=3, weight_initializer="ones", bias_initializer="ones",
                         prefix=prefix)
    net.initialize()
    return net

def backward(net, rows):
    with autograd.record():
        loss = net(nd.ones((rows, 3))).sum()
    loss.backward()
"""


def ended(tmp_path: Path, body: str, hosts: int = 1, **options: object) -> Ended:
    with job(tmp_path, body, hosts, **options) as cluster:  # type: ignore[arg-type]
        return cluster.ended()[0]


def test_ranks_follow_the_hosts_names(tmp_path: Path) -> None:
    """All hosts have the same address here, and ports in any order."""
    with job(tmp_path, 'say("rank", kv.rank)', 3, kvstore=True) as cluster:
        ends = cluster.ended()
    for place, end in enumerate(ends):
        assert end.status == 0, end.output
        assert f"rank {place}\n" in end.output


def test_changes_of_a_trainer_reach_the_servers(tmp_path: Path) -> None:
    """Each takes effect with its own step, without waiting for the previous one."""
    body = (
        TRAINER
        + """
net = network()
net.bias.lr_mult = 0.5
trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1.0}, kvstore="dist_sync")
expected = {"weight": 1.0, "bias": 1.0}
optimizer = trainer.optimizer

def step(rows, **settings):
    backward(net, rows)
    trainer.step(2 * rows)
    for name, value in expected.items():
        lr = settings["lr"] * settings.get(name + "_lr", 1.0)
        expected[name] -= lr * (1.0 + settings.get("wd", 0.0) * value)

for number in range(40):
    trainer.set_learning_rate(1 / (number + 1))
    step(4, lr=1 / (number + 1), bias_lr=0.5)
step(2, lr=1 / 40, bias_lr=0.5)  # another batch size
net.weight.lr_mult, net.bias.lr_mult = 0.0, 1.0
step(2, lr=1 / 40, weight_lr=0.0)
optimizer.wd = 0.1
net.weight.lr_mult = 1.0
step(4, lr=1 / 40, wd=0.1)
optimizer.lr_scheduler = mx.lr_scheduler.FactorScheduler(1000, base_lr=0.25)
step(4, lr=0.25, wd=0.1)
optimizer.lr_scheduler.base_lr = 0.125
step(4, lr=0.125, wd=0.1)
for name, value in expected.items():
    found = getattr(net, name).data().asnumpy().ravel()
    say(name, abs(found - value).max() < 1e-5, found, value)
"""
    )
    with job(tmp_path, body, 2, parameter_server=True) as cluster:
        for end in cluster.ended():
            assert end.status == 0, end.output
            assert "weight True" in end.output, end.output
            assert "bias True" in end.output, end.output


def test_changes_of_a_module_keep_the_servers_state(tmp_path: Path) -> None:
    """With momentum, which a new optimizer would reset."""
    body = """
    import mxnet as mx
    kv = mx.kv.create("dist_async")
    symbol = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=1, no_bias=True, name="fc")
    module = mx.mod.Module(mx.sym.MakeLoss(mx.sym.sum(symbol)), label_names=None)
    module.bind([("data", (2, 3))])
    module.init_params(mx.init.One())
    options = {"learning_rate": 1.0, "momentum": 0.5, "rescale_grad": 0.5}
    module.init_optimizer(kvstore="dist_async", optimizer="sgd", optimizer_params=options)
    for rate in (1.0, 1.0, 0.25):
        module._optimizer.set_learning_rate(rate)
        module.forward(mx.io.DataBatch([mx.nd.ones((2, 3))]))
        module.backward()
        module.update()
    say(module.get_params()[0]["fc_weight"].asnumpy(), kv is module._kvstore)
    """
    end = ended(tmp_path, body, parameter_server=True)
    # 1 - 1 - (0.5 + 1) - (0.75 + 0.25)
    assert "[[-2.5 -2.5 -2.5]] True" in end.output, end.output


FAILURES = {
    "another type": (
        'import mxnet as mx; mx.kv.create("dist_sync"); mx.kv.create("dist_async")',
        "RuntimeError: kvstore 'dist_async' cannot be created: .*'dist_sync'; use the same type",
    ),
    "two trainers": (
        TRAINER
        + """
for prefix in ("generator_", "discriminator_"):
    net = network(prefix)
    trainer = gluon.Trainer(net.collect_params(), "sgd", kvstore="dist_sync")
    backward(net, 1)
    trainer.step(1)
""",
        "RuntimeError: key 0 of kvstore 'dist_sync' is in use: .*pass the parameters",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_impossible_second_kvstore_fails_immediately(tmp_path: Path, case: str) -> None:
    body, cause = FAILURES[case]
    end = ended(tmp_path, body, 2, parameter_server=True)
    assert re.search(cause, end.cause), end.output


def test_the_open_kvstore_is_used_again(tmp_path: Path) -> None:
    body = (
        TRAINER
        + """
def rank():
    return mx.kv.create("dist_sync").rank

say("rank", rank())
net = network()
trainer = gluon.Trainer(net.collect_params(), "sgd", kvstore="dist_sync")
backward(net, 1)
trainer.step(1)
say("trained", trainer._kvstore is mx.kv.create("DIST_SYNC"))
"""
    )
    with job(tmp_path, body, 2, parameter_server=True) as cluster:
        for place, end in enumerate(cluster.ended()):
            assert (end.status, end.failure) == (0, None), end.output
            assert f"rank {place}\ntrained True\n" in end.output


def test_a_shell_script_has_the_same_kvstore(tmp_path: Path) -> None:
    """Without the toolkit's bootstrap, which would close the kvstore at the end."""
    body = TRAINER + (
        """
mx.kv.create("dist_sync")
net = network()
trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1.0}, kvstore="dist_sync")
for rate in (1.0, 0.0):
    trainer.set_learning_rate(rate)
    backward(net, 1)
    trainer.step(1)
print("weights", net.weight.data().asnumpy(), flush=True)
"""
    )
    shell = f"#!/bin/sh\n'{sys.executable}' - <<'END'\n{body}\nEND\n"
    with job(tmp_path, shell, 1, parameter_server=True, entry_point="train.sh") as cluster:
        end = cluster.ended()[0]
    assert (end.status, end.failure) == (0, None), end.output
    assert "weights [[0. 0. 0.]]" in end.output


def test_kvstore_without_parameter_server_error_names_the_setting(tmp_path: Path) -> None:
    end = ended(tmp_path, 'import mxnet as mx; mx.kv.create("dist_sync")')
    assert "sagemaker_parameter_server_enabled=true" in end.cause
    assert "distribution={'parameter_server': {'enabled': True}}" in end.cause


def test_an_exception_of_an_optimizer_in_this_process_is_raised(tmp_path: Path) -> None:
    body = """
    import mxnet as mx
    class Mine(mx.optimizer.Optimizer):
        def create_state(self, index, weight):
            return None

        def update(self, index, weight, grad, state):
            raise ArithmeticError("no update today")

    kv = mx.kv.create("local")
    kv.init("w", mx.nd.ones((2,)))
    kv.set_optimizer(Mine())
    kv.push("w", mx.nd.ones((2,)))
    """
    assert "ArithmeticError: no update today" in ended(tmp_path, body).cause
