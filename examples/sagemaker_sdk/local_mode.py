"""What local mode leaves to its user: this machine's pip settings, and clearing up."""

import os
import pathlib
import shutil
import subprocess

NETWORK = "sagemaker-local"
"""The network that local mode makes (sagemaker 2.257.7, ``local/image.py``)."""


def site_settings(directory: pathlib.Path) -> tuple:
    """Return variables and channels by which the job's pip knows the package index of this site.

    Local mode mounts nothing but channels, so a CA bundle travels as one.
    """
    names = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
    variables = {name: os.environ[name] for name in names if os.environ.get(name)}
    channels = {}
    if os.environ.get("PIP_CERT"):
        folder = directory / "site"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.environ["PIP_CERT"], folder / "ca.pem")
        channels["site"] = folder
        variables["PIP_CERT"] = "/opt/ml/input/data/site/ca.pem"
    return variables, channels


def remove_containers(root: pathlib.Path) -> None:
    """Remove the containers of every job below ``root``, and the network when nobody is in it.

    Compose names a project after its file's folder; local mode never takes one down.
    """
    for file in [*root.glob("docker-compose.yaml"), *root.glob("*/docker-compose.yaml")]:
        label = f"label=com.docker.compose.project={file.parent.name}"
        found = subprocess.check_output(["docker", "ps", "-aq", "--filter", label], text=True)
        for container in found.split():
            subprocess.run(["docker", "rm", "-f", container], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(
        ["docker", "network", "rm", NETWORK],
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
