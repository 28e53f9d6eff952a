"""Contents of the image."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Dict, List, Set

import pytest

from tests.container.conftest import SITE_MARK
from tests.support.containers import ROOT, run

pytestmark = pytest.mark.timeout(1800)


def in_image(image: str, *command: str) -> str:
    return run("docker", "run", "--rm", image, *command).stdout


def inspect(image: str) -> Dict[str, object]:
    return json.loads(run("docker", "image", "inspect", image).stdout)[0]


def test_size(image: str) -> None:
    assert inspect(image)["Size"] < 700 * 10**6


def test_entrypoint_needs_no_shell(image: str) -> None:
    assert inspect(image)["Config"]["Entrypoint"] == ["sagemaker-mxnet-training"]


def test_labels(image: str) -> None:
    labels = inspect(image)["Config"]["Labels"]
    names = {name.rpartition(".")[2] for name in labels if name.startswith("org.opencontainers.")}
    assert names >= {"title", "description", "licenses", "version", "revision", "name"}
    assert labels["org.opencontainers.image.version"] in in_image(image, "--version")
    for capability in ("accept-bind-to-port", "multi-models"):
        assert labels[f"com.amazonaws.sagemaker.capabilities.{capability}"] == "true"


def test_environment(image: str) -> None:
    """Output is unbuffered, byte code may be written, and pip has no setting of the build's."""
    variables = dict(item.split("=", 1) for item in inspect(image)["Config"]["Env"])
    assert variables["PYTHONUNBUFFERED"] == "1"
    assert "PYTHONDONTWRITEBYTECODE" not in variables
    assert [name for name in variables if name.startswith("PIP_")] == []
    assert in_image(image, "pip", "config", "list") == ""


def test_versions_are_those_of_the_lock(image: str) -> None:
    locked = {}
    for name in ("tools.txt", "cpu.txt"):
        text = (ROOT / "docker/requirements" / name).read_text()
        locked.update(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    found = _versions(json.loads(in_image(image, "pip", "list", "--format=json")))
    del found["sagemaker-mxnet-training"]
    assert found == locked


def _versions(packages: List[Dict[str, str]]) -> Dict[str, str]:
    """Return the version of each package, by its canonical name."""
    return {re.sub("[-_.]+", "-", each["name"]).lower(): each["version"] for each in packages}


def test_the_list_of_what_is_in_it_is_complete(image: str) -> None:
    """The CycloneDX file names all packages of the environment, this one among them."""
    path = "/usr/share/sagemaker-mxnet-training/sbom.cdx.json"
    script = f"cat {path}; echo; pip list --format=json"
    *lines, packages = in_image(image, "sh", "-c", script).splitlines()
    sbom = json.loads("\n".join(lines))
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    components = sbom["components"]
    assert _versions(components) == _versions(json.loads(packages))
    # This package comes from no index, and so has no package URL.
    without = [each["name"] for each in components if "pkg:pypi/" not in each.get("purl", "")]
    assert without == ["sagemaker-mxnet-training"]


def test_no_compiler_and_no_leftovers(image: str) -> None:
    script = """
        for program in cc gcc g++ c++ clang make ld as; do command -v $program; done
        ls -A /root/.cache /var/lib/apt/lists /build /checkout /wheel /tmp 2>/dev/null | grep -v :
        true
    """
    assert in_image(image, "sh", "-c", script).split() == []


def test_byte_code_is_compiled_and_current(image: str) -> None:
    """Importing what a job imports reads compiled files only."""
    modules = "mxnet, boto3, psutil, sagemaker_mxnet_training.host.supervisor"
    trace = in_image(image, "python", "-v", "-c", f"import {modules}")
    assert "# code object from '/opt/venv/lib/" in trace
    assert re.findall(r"^# (?:wrote|created|bytecode is stale) .*", trace, re.MULTILINE) == []


def test_nothing_of_this_site_is_in_any_layer(image: str) -> None:
    """Neither the CA certificates of this machine alone, nor its settings for pip."""
    marks = {SITE_MARK.encode()} | {cert.encode() for cert in _own_certificates(image)}
    longest = max(map(len, marks))
    saved = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
    assert saved.stdout is not None
    size, tail, found = 0, b"", set()
    for chunk in iter(lambda: saved.stdout.read(1 << 24), b""):
        found |= {mark for mark in marks if mark in tail + chunk}
        tail, size = chunk[-longest:], size + len(chunk)
    assert saved.wait() == 0
    assert size > 500 * 10**6
    assert found == set()
    history = run("docker", "history", "--no-trunc", image).stdout
    assert SITE_MARK not in history


def _own_certificates(image: str) -> Set[str]:
    """Return a telling line of each certificate that pip is given here and Debian does not ship."""
    bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    if not bundle:
        return set()
    public = set(_certificates(in_image(image, "cat", "/etc/ssl/certs/ca-certificates.crt")))
    for path in Path("/usr/share/ca-certificates").rglob("*.crt"):
        public |= set(_certificates(path.read_text()))
    # The middle of a certificate holds its key: no two share that line.
    own = set(_certificates(Path(bundle).read_text())) - public
    return {cert.split()[len(cert.split()) // 2] for cert in own}


def _certificates(text: str) -> List[str]:
    return re.findall(r"-----BEGIN CERTIFICATE-----\s+([^-]+?)\s+-----END", text)


def test_first_word_that_is_no_subcommand_is_a_command(image: str) -> None:
    assert in_image(image, "python", "-V").startswith("Python 3.")


def test_mistaken_base_is_said(image: str, only_build: None) -> None:
    """A base with another Python than the lock's ends the build with that as its reason."""
    done = run(
        *("docker", "build", "--force-rm", "-f", str(ROOT / "docker/Dockerfile"), str(ROOT)),
        *("--build-arg", f"BASE_IMAGE={_base_of(image)}", "--build-arg", "LOCK=gpu"),
        timeout=600,
        check=False,
    )
    assert done.returncode != 0
    assert "gpu.txt is for Python 3.10, and the base has 3.11" in done.stdout


def _base_of(image: str) -> str:
    return str(inspect(image)["Config"]["Labels"]["org.opencontainers.image.base.name"])
