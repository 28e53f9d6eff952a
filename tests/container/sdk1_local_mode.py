"""Trains and serves with SageMaker Python SDK 1.72 in local mode: a program for its environment.

python sdk1_local_mode.py train|serve SCENARIO, a JSON file with:
    arguments: arguments of ``sagemaker.mxnet.MXNet`` or ``sagemaker.mxnet.model.MXNetModel``.
    inputs: channels of a training job, or null.
    port: where an endpoint listens.
    requests: what an endpoint is asked, each a body, a Content-Type and an Accept, or null.

``serve`` prints the answers as JSON in its last line: a Content-Type and a text for each request.
"""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import boto3
import requests
from sagemaker import LocalSession
from sagemaker.local import entities
from sagemaker.mxnet import MXNet
from sagemaker.mxnet.model import MXNetModel

# Local mode looks for an endpoint every 5 s, for 120 s; here every 0.5 s.
entities.time = SimpleNamespace(sleep=lambda _: time.sleep(0.5))
entities.HEALTH_CHECK_TIMEOUT_LIMIT *= 10


def session(port):
    made = LocalSession(boto_session=boto3.Session(region_name="us-west-2"))
    made._default_bucket = "bucket"  # asking for it would be a call to AWS's own address
    made.config = {"local": {"serving_port": port}}
    return made


def train(arguments, inputs, local):
    MXNet(sagemaker_session=local, train_instance_type="local", **arguments).fit(inputs)


def serve(arguments, asked, local):
    model = MXNetModel(sagemaker_session=local, **arguments)
    port = local.config["local"]["serving_port"]
    answers = []
    try:
        model.deploy(1, "local")
        for body, content_type, accept in asked:
            headers = {"Content-Type": content_type, "Accept": accept}
            headers = {name: value for name, value in headers.items() if value is not None}
            url = f"http://localhost:{port}/invocations"
            answer = requests.post(url, data=body, headers=headers, timeout=60)
            answers.append([answer.headers["Content-Type"], answer.text])
    finally:
        local.delete_endpoint(model.endpoint_name)
    print(json.dumps(answers))


if __name__ == "__main__":
    scenario = json.loads(Path(sys.argv[2]).read_text())
    local = session(scenario["port"])
    if sys.argv[1] == "train":
        train(scenario["arguments"], scenario["inputs"], local)
    else:
        serve(scenario["arguments"], scenario["requests"], local)
