"""Trains with the SDK's ModelTrainer, which knows no MXNet: our entrypoint is a plain command.

SDK 3 (``pip install sagemaker-train``) has no MXNet estimator; this is its way to the same job, and
SDK 2.257 has the same class. It runs in local container mode. In the cloud, leave out
``training_mode`` and ``local_container_root``, and name an ``ml.`` instance type, the image in ECR
and a role.
"""

import argparse
import json
import os
import pathlib
import tarfile
import tempfile

import boto3
from data import write_channels
from local_mode import remove_containers, site_settings

try:
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import Compute, InputData, SourceCode
    from sagemaker.train.model_trainer import Mode
except ImportError:
    from sagemaker.modules import Session
    from sagemaker.modules.configs import Compute, InputData, SourceCode
    from sagemaker.modules.train import ModelTrainer
    from sagemaker.modules.train.model_trainer import Mode

HERE = pathlib.Path(__file__).resolve().parent


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--image", default="sagemaker-mxnet-training:latest")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/model-trainer"))
    return parser.parse_args()


def main():
    args = parse_arguments()
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    variables, site = site_settings(output)
    channels = {**write_channels(output / "data"), **site}
    root = pathlib.Path(tempfile.mkdtemp(prefix="containers-", dir=output))
    trainer = ModelTrainer(
        training_image=args.image,
        training_mode=Mode.LOCAL_CONTAINER,
        local_container_root=str(root),
        base_job_name="digits",
        role="arn:aws:iam::111111111111:role/unused-in-local-mode",
        sagemaker_session=Session(boto3.Session(region_name="us-east-1")),
        compute=Compute(instance_type="local_cpu", instance_count=args.hosts),
        source_code=SourceCode(
            source_dir=str(HERE / "source"), command="sagemaker-mxnet-training train"
        ),
        environment={
            # ModelTrainer sets SM_HOSTS and the like; these are what an estimator would have said.
            "SM_MODULE_DIR": "/opt/ml/input/data/code",
            "SM_USER_ENTRY_POINT": "train.py",
            "SM_FRAMEWORK_PARAMS": json.dumps({"sagemaker_parameter_server_enabled": True}),
            **variables,
        },
        hyperparameters={
            "epochs": 10,
            "learning-rate": 0.005,
            "hybridize": True,
            "layers": [128, 64],
            "optimizer": {"wd": 1e-4},
            "batch-size": 32,
        },
    )
    inputs = [
        InputData(channel_name=name, data_source=str(folder)) for name, folder in channels.items()
    ]
    try:
        trainer.train(input_data_config=inputs)
    finally:
        remove_containers(root)

    model = root / "compressed_artifacts" / "model.tar.gz"
    print(f"model: {model}")
    with tarfile.open(model) as archive:
        print("holds:", *sorted(archive.getnames()))


if __name__ == "__main__":
    main()
