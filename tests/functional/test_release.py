"""The release script: what it refuses, and what it builds and tags."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "CHANGELOG.md", "src", "scripts")
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")
VERSION = "5.0.0"


def git(checkout: Path, *words: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.com")
    command = ["git", "-C", str(checkout), *identity, *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def release(checkout: Path, *words: str, python: str = "python3"):
    return subprocess.run(
        ["env", f"PYTHON={python}", str(checkout / "scripts/release.sh"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a repository with what a release consists of, ready to be released."""
    place = tmp_path / "checkout"
    place.mkdir()
    for name in FILES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, ignore=IGNORED)
        else:
            shutil.copy(ROOT / name, place / name)
    (place / "CHANGELOG.md").write_text(f"# Changelog\n\n## [{VERSION}] - 2026-01-31\n")
    git(place, "init", "--quiet")
    # An identity for the tag, too.
    git(place, "config", "user.name", "Test")
    git(place, "config", "user.email", "test@example.com")
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--message", "All")
    return place


@pytest.mark.timeout(600)  # downloads
def test_release_is_built_checked_and_tagged(checkout):
    done = release(checkout)
    assert done.returncode == 0, done.stdout
    stem = f"sagemaker_mxnet_training-{VERSION}"
    names = {path.name for path in (checkout / "dist").iterdir()}
    assert names == {f"{stem}.tar.gz", f"{stem}-py3-none-any.whl"}
    assert done.stdout.count("PASSED") == 2
    assert git(checkout, "tag", "--list").split() == [f"v{VERSION}"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda place: (place / "new").write_text(""), "uncommitted changes"),
        (
            lambda place: (
                (place / "CHANGELOG.md").write_text("## [Unreleased]\n"),
                git(place, "commit", "--all", "--quiet", "--message", "No date"),
            ),
            f"no section '## [{VERSION}] - YYYY-MM-DD'",
        ),
        (lambda place: git(place, "tag", f"v{VERSION}"), f"the tag v{VERSION} exists"),
    ],
    ids=["dirty", "undated", "tagged"],
)
def test_release_refuses(checkout, spoil, message):
    spoil(checkout)
    done = release(checkout, python="/bin/false")
    assert done.returncode == 1
    assert message in done.stdout
    assert "building" not in done.stdout


def test_dry_run_only_warns(checkout):
    (checkout / "new").write_text("")
    done = release(checkout, "--dry-run", python="/bin/false")
    assert "warning: the checkout has uncommitted changes" in done.stdout
    assert f"building {VERSION}" in done.stdout
    assert git(checkout, "tag", "--list") == ""
