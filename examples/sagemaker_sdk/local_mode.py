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


def serving_variables(variables: dict) -> dict:
    """Return the variables by which an endpoint's pip knows the package index of this site.

    An endpoint has no channels. Local mode mounts the folder that holds ``model.tar.gz``, and here
    that is the one that ``site_settings`` has written into.
    """
    if "PIP_CERT" not in variables:
        return variables
    return {**variables, "PIP_CERT": "/opt/ml/model/site/ca.pem"}


def remove_containers(root: pathlib.Path) -> None:
    """Remove the containers of all jobs and endpoints below ``root``, and an unused network.

    Local mode stops containers and leaves them there; the folder of an endpoint it deletes.
    """
    label = "com.docker.compose.project.working_dir"
    form = '{{.ID}} {{.Label "' + label + '"}}'
    listed = ["docker", "ps", "--all", "--filter", f"label={label}", "--format", form]
    for line in subprocess.check_output(listed, text=True).splitlines():
        container, _, directory = line.partition(" ")
        if root in (pathlib.Path(directory), pathlib.Path(directory).parent):
            subprocess.run(["docker", "rm", "-f", container], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(
        ["docker", "network", "rm", NETWORK],
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
