"""Features of SageMaker's platform: groups of instances, metrics, warm pools."""

import json
import re
from pathlib import Path

from tests.support.jobs import job

HOSTS = ["algo-1", "algo-2", "algo-3"]
GROUPS = [
    {"instance_group_name": "data", "instance_type": "ml.c5.xlarge", "hosts": HOSTS[:1]},
    {"instance_group_name": "train", "instance_type": "ml.p3.2xlarge", "hosts": HOSTS[1:]},
]


def test_kvstore_covers_the_distribution_groups(
    tmp_path: Path,
) -> None:
    """The other group's host runs the script without it, and waits only for the job's end."""
    body = """
        import json
        host = os.environ["SM_CURRENT_HOST"]
        assert json.loads(os.environ["SM_DISTRIBUTION_INSTANCE_GROUPS"]) == ["train"]
        environment = json.loads(os.environ["SM_TRAINING_ENV"])
        assert environment["distribution_hosts"] == ["algo-2", "algo-3"]
        if os.environ["SM_CURRENT_INSTANCE_GROUP"] == "data":
            say(host, "role", os.environ.get("DMLC_ROLE"))
        else:
            import mxnet as mx
            kv = mx.kv.create("dist_sync")
            kv.init("w", mx.nd.zeros(4))
            kv.push("w", mx.nd.ones(4))
            value = mx.nd.zeros(4)
            kv.pull("w", out=value)
            say(host, "of", kv.num_workers, "pulled", value.asnumpy().tolist())
    """

    def variables(number: int) -> "dict[str, str]":
        group = GROUPS[0 if number == 1 else 1]["instance_group_name"]
        resources = {
            "current_host": f"algo-{number}",
            "current_group_name": group,
            "hosts": HOSTS,
            "instance_groups": GROUPS,
        }
        parameters = {
            "sagemaker_parameter_server_enabled": True,
            "sagemaker_distribution_instance_groups": ["train"],
        }
        return {
            "SM_RESOURCE_CONFIG": json.dumps(resources),
            "SM_FRAMEWORK_PARAMS": json.dumps(parameters),
        }

    with job(tmp_path, body, hosts=3, per_host=variables) as cluster:
        ends = cluster.ended()
    assert [end.status for end in ends] == [0, 0, 0], ends[0].output
    assert "algo-1 role None" in ends[0].output
    assert "no worker used the kvstore" not in ends[0].output
    for number, end in enumerate(ends[1:], 2):
        assert f"algo-{number} of 2 pulled [2.0, 2.0, 2.0, 2.0]" in end.output
    assert "parameter server on, for algo-2, algo-3" in ends[0].output


def test_unknown_group_is_reported(tmp_path: Path) -> None:
    resources = {"current_host": "algo-1", "hosts": HOSTS[:1], "instance_groups": GROUPS[:1]}
    parameters = {"sagemaker_distribution_instance_groups": ["train"]}
    env = {
        "SM_RESOURCE_CONFIG": json.dumps(resources),
        "SM_FRAMEWORK_PARAMS": json.dumps(parameters),
    }
    with job(tmp_path, "pass", env=env) as cluster:
        (end,) = cluster.ended()
    assert "unknown instance groups ['train']" in end.cause
    assert "expected some of ['data']" in end.cause


METRICS = {
    "train:accuracy": r"^INFO:root:Epoch\[\d+\] Train-accuracy=([0-9.]+)",
    "validation:accuracy": r"^INFO:root:Epoch\[\d+\] Validation-accuracy=([0-9.]+)",
    "own": r"^loss: ([0-9.]+);",
}
"""``metric_definitions`` that only match where a line begins as the script wrote it."""


def test_metric_regular_expressions_match_the_output(tmp_path: Path) -> None:
    body = """
        import logging
        import mxnet as mx
        import numpy as np
        logging.basicConfig(level=logging.INFO)
        net = mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=2)
        net = mx.sym.SoftmaxOutput(net, name="softmax")
        rows = mx.io.NDArrayIter(np.ones((8, 3), "float32"), np.zeros(8), 4)
        mx.mod.Module(net).fit(rows, eval_data=rows, num_epoch=2)
        for step in range(3):
            print(f"loss: {step}.5;\\n", end="", flush=True)  # in one write
    """
    with job(tmp_path, body) as cluster:
        (end,) = cluster.ended()
    assert end.status == 0, end.output
    found = {name: re.findall(regex, end.output, re.MULTILINE) for name, regex in METRICS.items()}
    assert [len(values) for values in found.values()] == [2, 2, 3], end.output
    assert found["own"] == ["0.5", "1.5", "2.5"]


def test_second_job_in_the_same_container_is_independent(tmp_path: Path) -> None:
    """The first one leaves no failure file, process or temporary file."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = {"TMPDIR": str(temporary)}
    with job(tmp_path, "raise ValueError('of the first job')", env=env) as cluster:
        (first,) = cluster.ended()
        assert cluster.processes() == []
    assert "of the first job" in first.cause
    with job(tmp_path, "say('second')", env=env) as cluster:
        (second,) = cluster.ended()
    assert (second.status, second.success, second.failure) == (0, True, None), second.output
    timeline = tmp_path / "algo-1/output/data/timeline-algo-1.json"
    assert "of the first job" not in timeline.read_text()
    with job(tmp_path, "raise ValueError('of the third job')", env=env) as cluster:
        (third,) = cluster.ended()
    assert (third.success, "of the third job" in third.cause) == (False, True)
    assert list(temporary.iterdir()) == []
