"""Reports of ``scripts/audit.sh`` on vulnerabilities."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOUND = {"id": "PYSEC-1", "aliases": ["CVE-2026-1"], "fix_versions": ["2.0"], "description": "x"}
CLEAN = {"name": "six", "version": "1.17.0", "vulns": []}
VULNERABLE = {"name": "old", "version": "1.0", "vulns": [FOUND]}
UNKNOWN = {"name": "own", "skip_reason": "Dependency not found on PyPI"}


def report(
    folder: Path, *packages: object, decisions: str = ""
) -> "subprocess.CompletedProcess[str]":
    (folder / "decisions.txt").write_text(f"# comment\n{decisions}\n")
    (folder / "lock.txt").write_text("# python 3.11\n# made 2026-11-24\nsix==1.17.0\n")
    (folder / "audit.json").write_text(json.dumps({"dependencies": packages}))
    files = [str(folder / name) for name in ("decisions.txt", "lock.txt", "audit.json")]
    command = [sys.executable, str(ROOT / "scripts/audit_report.py"), *files]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_nothing_found(tmp_path: Path) -> None:
    done = report(tmp_path, CLEAN)
    assert done.returncode == 0
    assert "1 packages, locked 2026-11-24\n  0 open among the 1 that were looked up" in done.stdout


def test_undecided_entry_is_open(tmp_path: Path) -> None:
    done = report(tmp_path, CLEAN, VULNERABLE, UNKNOWN)
    assert done.returncode == 1
    assert "old 1.0  PYSEC-1 CVE-2026-1  fixed in 2.0: OPEN" in done.stdout


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-2026-1"])
def test_a_decision_is_shown_with_its_reason(tmp_path: Path, name: str) -> None:
    decision = f"{name} | old | not affected | 2026-11-27 | we call none of it"
    done = report(tmp_path, VULNERABLE, decisions=decision)
    assert done.returncode == 0
    assert "fixed in 2.0: not affected (2026-11-27): we call none of it" in done.stdout


def test_a_decision_holds_for_its_package_alone(tmp_path: Path) -> None:
    decision = "PYSEC-1 | other | accepted | 2026-11-27 | reason"
    assert report(tmp_path, VULNERABLE, decisions=decision).returncode == 1


def test_package_unknown_to_the_service_is_not_clean(tmp_path: Path) -> None:
    done = report(tmp_path, CLEAN, UNKNOWN)
    assert done.returncode == 3
    assert "NOT AUDITED, as the service did not know them: own" in done.stdout


@pytest.mark.parametrize(
    "line", ["PYSEC-1 | old | ignored | 2026-11-27 | x", "PYSEC-1", "a|b|accepted|2026-11-27|"]
)
def test_invalid_decision_is_rejected(tmp_path: Path, line: str) -> None:
    done = report(tmp_path, CLEAN, decisions=line)
    assert done.returncode == 1
    assert "line 2: expected ID | PACKAGE | DECISION | DATE | REASON" in done.stderr


def test_the_decisions_that_there_are_can_be_read(tmp_path: Path) -> None:
    decisions = (ROOT / "docker/requirements/decisions.txt").read_text()
    assert report(tmp_path, CLEAN, decisions=decisions).returncode == 0
