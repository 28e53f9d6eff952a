"""Serves a model with the SageMaker Python SDK in local mode: a program for the SDK's environment.

python sdk_model.py SCENARIO, a JSON file with:
    directory: where local mode has its files.
    port: where the endpoint listens.
    model: arguments of MXNetModel.
    rows: what an endpoint is asked, as a list of rows.
    transform: a file of CSV to be transformed into the directory instead.

The last line that it prints is the endpoint's answers, by content type, as JSON.
"""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import boto3
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples/sagemaker_sdk"))

from fit import NO_TELEMETRY  # noqa: E402
from local_mode import remove_containers  # noqa: E402
from sagemaker.deserializers import CSVDeserializer, JSONDeserializer, NumpyDeserializer  # noqa: E402
from sagemaker.local import LocalSession, entities  # noqa: E402
from sagemaker.mxnet import MXNetModel  # noqa: E402
from sagemaker.serializers import CSVSerializer, JSONSerializer, NumpySerializer  # noqa: E402

# Local mode looks for an endpoint every 5 s, for 120 s; here every 0.5 s.
entities.time = SimpleNamespace(sleep=lambda _: time.sleep(0.5))
entities.HEALTH_CHECK_TIMEOUT_LIMIT *= 10

PAIRS = [
    (JSONSerializer(), JSONDeserializer()),
    (CSVSerializer(), CSVDeserializer()),
    (NumpySerializer(), NumpyDeserializer()),
]


def ask(model, rows):
    """Return an endpoint's answers to the same rows in each content type."""
    # Local mode returns when the endpoint answers; to wait then is 30 s, the SDK's period.
    predictor = model.deploy(1, "local", wait=False)
    answers = {}
    try:
        for predictor.serializer, predictor.deserializer in PAIRS:
            answer = predictor.predict(np.array(rows, dtype="float32"))
            answers[predictor.content_type] = np.array(answer, dtype="float32").tolist()
    finally:
        predictor.delete_endpoint()
    return answers


def transform(model, file, directory):
    """Transform a file of CSV, many lines at a time."""
    # No assemble_with="Line": an answer ends in a newline, and a second one is an empty line.
    transformer = model.transformer(
        1, "local", output_path=f"file://{directory}", accept="text/csv", strategy="MultiRecord"
    )
    # The SDK follows a job in the cloud only; in local mode the call returns when all is done.
    transformer.transform(
        f"file://{file}",
        content_type="text/csv",
        split_type="Line",
        join_source="Input",  # local mode takes it, and writes the answers alone
        wait=False,
        logs=False,
    )


def main():
    scenario = json.loads(Path(sys.argv[1]).read_text())
    directory = Path(scenario["directory"])
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    session = LocalSession(boto3.Session(region_name="us-east-1"), sagemaker_config=NO_TELEMETRY)
    containers = directory / "containers"
    containers.mkdir()
    local = {"local_code": True, "container_root": str(containers)}
    session.config = {"local": {**local, "serving_port": scenario["port"]}}
    model = MXNetModel(
        role="arn:aws:iam::111111111111:role/unused-in-local-mode",
        framework_version="1.9.1",
        code_location="s3://unused-in-local-mode",
        sagemaker_session=session,
        **scenario["model"],
    )
    answers = {}
    try:
        if "transform" in scenario:
            transform(model, scenario["transform"], directory)
        else:
            answers = ask(model, scenario["rows"])
    finally:
        remove_containers(containers)
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
