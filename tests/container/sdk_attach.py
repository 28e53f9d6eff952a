"""Submits a job to SageMaker's API and attaches to it: a program for the SDK's environment.

python sdk_attach.py ENDPOINT SOURCE_DIR

The last line that it prints is what the API and the attached estimator say of the job, as JSON.
"""

import json
import os
import sys
import time
from pathlib import Path

import boto3
from sagemaker.inputs import TrainingInput
from sagemaker.mxnet import MXNet
from sagemaker.session import Session

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples/sagemaker_sdk"))

from fit import NO_TELEMETRY  # noqa: E402

ROLE = "arn:aws:iam::123456789012:role/sagemaker"
METRICS = [{"Name": "accuracy", "Regex": r"^validation-accuracy=([0-9.]+)"}]


def main(endpoint, source_dir):
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    boto_session = boto3.Session(
        region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="unused"
    )
    clients = {
        f"{name.replace('-', '_')}_client": boto_session.client(name, endpoint_url=endpoint)
        for name in ("sagemaker", "sagemaker-runtime")
    }
    session = Session(
        boto_session, default_bucket="bucket", sagemaker_config=NO_TELEMETRY, **clients
    )
    session.s3_client = boto_session.client("s3", endpoint_url=endpoint)
    session.s3_resource = boto_session.resource("s3", endpoint_url=endpoint)
    estimator = MXNet(
        entry_point="train.py",
        source_dir=source_dir,
        framework_version="1.9.1",
        image_uri="123456789012.dkr.ecr.us-east-1.amazonaws.com/mxnet-training:5.0.0",
        role=ROLE,
        instance_type="ml.c5.xlarge",
        instance_count=2,
        distribution={"parameter_server": {"enabled": True}},
        hyperparameters={"epochs": 5, "layers": [128, 64], "comment": "text", "rate": 0.1},
        metric_definitions=METRICS,
        checkpoint_s3_uri="s3://bucket/checkpoints",
        keep_alive_period_in_seconds=600,
        max_run=3600,
        output_kms_key="alias/key",  # the SDK reads one in each answer, and moto adds none
        sagemaker_session=session,
    )
    estimator.fit({"training": TrainingInput("s3://bucket/data")}, wait=False)
    name = estimator.latest_training_job.name
    deadline = time.monotonic() + 30
    while session.describe_training_job(name)["TrainingJobStatus"] != "Completed":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    attached = MXNet.attach(name, sagemaker_session=session)
    described = session.describe_training_job(name)
    print(
        json.dumps(
            {
                "described": described,
                "attached": {
                    "hyperparameters": attached.hyperparameters(),
                    "entry_point": attached.entry_point,
                    "source_dir": attached.source_dir,
                    "image_uri": attached.image_uri,
                    "instance_count": attached.instance_count,
                    "model_data": attached.model_data,
                },
            },
            default=str,
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
