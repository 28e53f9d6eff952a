"""Scripts: messages about missing programs and files, and removal of temporary files."""

import os
import re
import shutil
from pathlib import Path
from typing import Dict, Iterator, Set

import pytest

from tests.support.containers import IMAGE, ROOT, Completed, Engine, run

NEVER_MADE = "smx-never:made"
TOOLS = ["awk", "bash", "cat", "cp", "date", "df", "dirname", "env", "grep", "id", "ls", "mkdir"]
TOOLS += ["mktemp", "mv", "python3", "rm", "sed", "seq", "sort", "tail", "xargs"]


def script(name: str, *arguments: str, **environ: str) -> "Completed[str]":
    path = str(ROOT / "scripts" / name)
    return run(path, *arguments, check=False, timeout=280, env={**os.environ, **environ})


@pytest.fixture
def leaves_nothing(docker: None, only_build: None, tmp_path: Path) -> Iterator[Dict[str, str]]:
    """Hand out a folder for temporary files; in the end nothing is there or in the engine."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    before = _half_built()
    yield {"TMPDIR": str(folder)}
    assert _half_built() == before
    assert run("docker", "images", "-q", NEVER_MADE).stdout == ""
    assert list(folder.iterdir()) == []


def _half_built() -> Set[str]:
    """Return what a failed build may leave: images without a name, and their containers."""
    images = set(run("docker", "images", "-q", "--filter", "dangling=true").stdout.split())
    # The engine calls a container's image by its name, if it has one.
    listed = run("docker", "ps", "--all", "--format", "{{.Image}} {{.ID}}").stdout.splitlines()
    return images | {line for line in listed if re.match(r"(sha256:)?[0-9a-f]{12,} ", line)}


@pytest.mark.parametrize("name", ["base-image.sh", "build-image.sh", "compose.sh"])
def test_no_engine(tmp_path: Path, name: str) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(str(shutil.which(tool)))
    done = script(name, PATH=str(tools), TMPDIR=str(tmp_path))
    assert done.returncode == 1
    assert f"{name}: there is no 'docker' command on this machine" in done.stdout
    assert "install Docker Engine" in done.stdout
    assert [path for path in tmp_path.iterdir() if path != tools] == []


@pytest.mark.parametrize("name", ["base-image.sh", "build-image.sh", "compose.sh"])
def test_engine_cannot_be_reached(leaves_nothing: Dict[str, str], name: str) -> None:
    done = script(name, DOCKER_HOST="tcp://127.0.0.1:1", **leaves_nothing)
    assert done.returncode == 1
    assert "the container engine cannot be reached" in done.stdout
    assert "DOCKER_HOST (now 'tcp://127.0.0.1:1')" in done.stdout


def test_no_compose(engine: Engine, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in [*TOOLS, "docker"]:
        (tools / tool).symlink_to(str(shutil.which(tool)))
    if run("docker", "compose", "version", check=False).returncode == 0:
        tools.joinpath("docker").unlink()
        tools.joinpath("docker").write_text(
            f'#!/bin/sh\n[ "$1" = compose ] && exit 1\nexec {shutil.which("docker")} "$@"\n'
        )
        tools.joinpath("docker").chmod(0o755)
    done = script("compose.sh", "--run-dir", str(tmp_path / "run"), PATH=str(tools))
    assert done.returncode == 1
    assert "neither 'docker compose' nor 'docker-compose'" in done.stdout
    assert not (tmp_path / "run").exists()


def test_base_that_cannot_be_pulled(leaves_nothing: Dict[str, str]) -> None:
    base = "registry.invalid/no/such:base"
    done = script("build-image.sh", "--base", base, "--tag", NEVER_MADE, **leaves_nothing)
    assert done.returncode == 1
    assert f"the base image {base} is not here and cannot be pulled" in done.stdout
    assert "correct --base" in done.stdout


def test_failed_build_leaves_no_half_image(image: str, leaves_nothing: Dict[str, str]) -> None:
    """The lock that is named does not exist."""
    done = script(
        *("build-image.sh", "--tag", NEVER_MADE, "--build-arg", "LOCK=missing"),
        **leaves_nothing,
    )
    assert done.returncode == 1
    assert "missing.txt: No such file" in done.stdout
    assert "the build failed" in done.stdout


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a small file system")
def test_no_room(docker: None, tmp_path: Path) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path))
    try:
        done = script("base-image.sh", NEVER_MADE, TMPDIR=str(tmp_path))
        assert done.returncode == 1
        assert "needs 1500 MB" in done.stdout
        assert "has 8 MB free" in done.stdout
        assert list(tmp_path.iterdir()) == []
    finally:
        run("umount", str(tmp_path))
    assert run("docker", "images", "-q", NEVER_MADE).stdout == ""


def test_name_in_use(engine: Engine, tmp_path: Path) -> None:
    label = f"com.docker.compose.project={engine.id}"
    engine.start("algo-1", "sleep", "100", options=["--label", label])
    done = script("compose.sh", "--name", engine.id, "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 1
    assert f"the name {engine.id} is in use" in done.stdout
    assert "choose another with --name" in done.stdout
    assert not (tmp_path / "run").exists()


def test_run_directory_in_use(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    done = script("compose.sh", "--name", engine.id, "--run-dir", str(tmp_path))
    assert done.returncode == 1
    assert "is not an empty folder" in done.stdout


def test_number_of_hosts_out_of_range(docker: None) -> None:
    done = script("compose.sh", "--hosts", "many")
    assert done.returncode == 2
    assert "--hosts many: expected 2 3 4" in done.stdout


def test_base_that_is_there_is_kept(docker: None, image: str) -> None:
    """Making the base takes a minute; a second call takes none."""
    before = run("docker", "images", "-q", IMAGE).stdout
    assert script("base-image.sh", IMAGE).stdout.startswith("base-image.sh: ")
    assert run("docker", "images", "-q", IMAGE).stdout == before
