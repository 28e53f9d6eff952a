"""Trains with the SageMaker Python SDK's MXNet estimator: on this machine, or in the cloud.

    python fit.py --hosts 2 --deploy                                               # this machine
    python fit.py --hosts 2 --instance-type ml.c5.xlarge --image ECR_URI --role ARN   # SageMaker

The estimator and its arguments are the same in both; only where data and results lie differs.
With --deploy, an endpoint then serves the model from the same image, and is asked and deleted.
"""

import argparse
import os
import pathlib
import tarfile

import boto3
import numpy as np
import sagemaker
from data import write_channels
from local_mode import remove_containers, serving_variables, site_settings
from sagemaker.deserializers import CSVDeserializer, JSONDeserializer, NumpyDeserializer
from sagemaker.local import LocalSession
from sagemaker.mxnet import MXNet
from sagemaker.serializers import CSVSerializer, JSONSerializer, NumpySerializer

HERE = pathlib.Path(__file__).resolve().parent

HYPERPARAMETERS = {
    "epochs": 10,
    "learning-rate": 0.005,
    "hybridize": True,
    "layers": [128, 64],
    "optimizer": {"wd": 1e-4},
    "batch-size": 32,
    "comment": "every JSON type",
    "resume-from": None,
}

NO_TELEMETRY = {
    "SchemaVersion": "1.0",
    "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}},
}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--instance-type", default="local", help="local, or an ml. type: the cloud")
    parser.add_argument("--image", default="sagemaker-mxnet-training:latest")
    parser.add_argument("--role", default="arn:aws:iam::111111111111:role/unused-in-local-mode")
    parser.add_argument("--source-dir", default=str(HERE / "source"))
    parser.add_argument(
        "--processes-per-host", type=int, default=0, help="train with Horovod, in so many on each"
    )
    parser.add_argument("--deploy", action="store_true", help="serve the model, and ask it")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/sdk"))
    return parser.parse_args()


def distribution(processes_per_host):
    """Return how the hosts train together: over MXNet's kvstore, or with Horovod."""
    if processes_per_host:
        return {"mpi": {"enabled": True, "processes_per_host": processes_per_host}}
    return {"parameter_server": {"enabled": True}}


def predict_with(predictor, images, labels):
    """Print how many images an endpoint knows, by each content type."""
    pairs = [
        (JSONSerializer(), JSONDeserializer()),
        (CSVSerializer(), CSVDeserializer()),
        (NumpySerializer(), NumpyDeserializer()),
    ]
    for predictor.serializer, predictor.deserializer in pairs:
        # CSV has no dimensions: a line is one image.
        rows = images.reshape(len(images), -1) if predictor.content_type == "text/csv" else images
        scores = np.array(predictor.predict(rows), dtype="float32")
        accuracy = (scores.argmax(axis=1) == labels).mean()
        print(f"{predictor.content_type}: {len(scores)} answers, accuracy={accuracy:.4f}")


def main():
    args = parse_arguments()
    output = args.output.resolve()
    local = args.instance_type.startswith("local")
    folders = write_channels(output / "data")
    variables = {}
    if local:
        # No account is needed: no credentials are looked for, and nothing is uploaded.
        os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
        session = LocalSession(
            boto3.Session(region_name=os.environ.get("AWS_REGION", "us-east-1")),
            sagemaker_config=NO_TELEMETRY,
        )
        containers = output / "containers"
        containers.mkdir(exist_ok=True)
        session.config = {"local": {"local_code": True, "container_root": str(containers)}}
        variables, site = site_settings(output)
        channels = {name: f"file://{folder}" for name, folder in {**folders, **site}.items()}
        # The SDK asks for an account's default bucket where code_location is not given.
        where = {"output_path": f"file://{output}", "code_location": "s3://unused-in-local-mode"}
    else:
        session = sagemaker.Session()
        channels = {
            name: session.upload_data(str(folder), key_prefix=f"digits/{name}")
            for name, folder in folders.items()
        }
        where = {}

    estimator = MXNet(
        entry_point="train.py",
        source_dir=args.source_dir,
        framework_version="1.9.1",  # asked for by deploy
        image_uri=args.image,
        role=args.role,
        instance_type=args.instance_type,
        instance_count=args.hosts,
        distribution=distribution(args.processes_per_host),
        hyperparameters=HYPERPARAMETERS,
        environment=variables,
        sagemaker_session=session,
        **where,
    )
    try:
        estimator.fit(channels)
        if args.deploy:
            env = serving_variables(variables) if local else {}
            # Local mode returns when the endpoint answers; to wait then is 30 s, the SDK's period.
            predictor = estimator.deploy(1, args.instance_type, env=env, wait=not local)
            try:
                with np.load(folders["validation"] / "digits.npz") as data:
                    predict_with(predictor, data["images"], data["labels"])
            finally:
                predictor.delete_endpoint()
    finally:
        if local:
            remove_containers(containers)

    print(f"model: {estimator.model_data}")
    if local:
        with tarfile.open(estimator.model_data[len("file://") :]) as archive:
            print("holds:", *sorted(archive.getnames()))


if __name__ == "__main__":
    main()
