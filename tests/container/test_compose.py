"""Several hosts under docker-compose, and how it treats containers that end."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

from tests.support.containers import KVSTORE, ROOT, Completed, run
from tests.support.jobs import eventually
from tests.survival.scripts import COUNTED

pytestmark = pytest.mark.timeout(600)

FILE = ROOT / "docker" / "docker-compose.yml"
STEPS = 200
MODEL = ["model-0000.params", "model-shapes.json", "model-symbol.json"]


def compose_command() -> List[str]:
    if run("docker", "compose", "version", check=False).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"]


def left_behind(project: str) -> str:
    label = f"label=com.docker.compose.project={project}"
    return (
        run("docker", "ps", "-aq", "--filter", label).stdout
        + run("docker", "network", "ls", "-q", "--filter", label).stdout
    )


@pytest.fixture
def project(image: str, tmp_path: Path) -> Iterator[str]:
    name = f"smx{os.getpid()}{tmp_path.name[-8:].lower()}".replace("_", "").replace("-", "")
    try:
        yield name
    finally:
        run(*compose_command(), "-f", str(FILE), "-p", name, "down", timeout=120)


def accuracies(log: str) -> List[float]:
    return [float(text) for text in re.findall(r"validation-accuracy=([\d.]+)", log)]


def test_two_hosts_with_one_command(project: str, tmp_path: Path) -> None:
    """``scripts/compose.sh`` trains the digits on two hosts, requirements and all."""
    script = str(ROOT / "scripts/compose.sh")
    done = run(script, "--name", project, "--run-dir", str(tmp_path / "run"), timeout=500)
    assert max(accuracies(done.stdout)) >= 0.95
    assert "num_workers=2" in done.stdout
    assert sorted(os.listdir(tmp_path / "run/algo-1/model")) == MODEL
    second = tmp_path / "run/algo-2"
    assert not (second / "model").exists() or os.listdir(second / "model") == []
    assert left_behind(project) == ""


def test_stop_of_the_script_stops_the_job(project: str, tmp_path: Path) -> None:
    """SIGTERM ends the containers too, and nobody calls it a success."""
    log = tmp_path / "log"
    with log.open("w") as file:
        script = subprocess.Popen(
            [
                *(str(ROOT / "scripts/compose.sh"), "--name", project),
                *("--run-dir", str(tmp_path / "run")),
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "SM_HPS": json.dumps({"epochs": 100000})},
        )
    try:
        eventually(lambda: "epoch=2 " in log.read_text(), "training", 400)
        script.terminate()
        assert script.wait(timeout=150) == 143
    finally:
        script.kill()
        script.wait()
    assert "compose.sh: stopped" in log.read_text()
    assert "trained on" not in log.read_text()
    assert left_behind(project) == ""


def up(project: str, hosts: int, run_dir: Path, env: Dict[str, str]) -> "Completed[str]":
    """Run plain Compose, as its file says, for a user who is not root."""
    for number in range(1, hosts + 1):
        (run_dir / f"algo-{number}").mkdir(parents=True)
        shutil.chown(run_dir / f"algo-{number}", 12345, 12345)
    variables = {
        **os.environ,
        "COMPOSE_PROFILES": str(hosts),
        "RUN_DIR": str(run_dir),
        "RUN_USER": "12345:12345",
        **env,
    }
    command = [*compose_command(), "-f", str(FILE), "-p", project, "up", "--no-build"]
    return run(*command, "--abort-on-container-exit", timeout=500, env=variables, check=False)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives folders to another user")
def test_three_hosts_of_another_user(project: str, tmp_path: Path) -> None:
    """One variable sets how many; every file belongs to the user that another one names."""
    env = {"SM_HPS": json.dumps({"epochs": 6})}
    done = up(project, 3, tmp_path / "run", env)
    assert done.returncode == 0, done.stdout
    assert "num_workers=3" in done.stdout
    assert len(accuracies(done.stdout)) == 3 * 6
    assert max(accuracies(done.stdout)) >= 0.95
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.stat().st_uid for path in written} == {12345}
    with_model = [path.parent.parent.name for path in written if path.name == MODEL[0]]
    assert with_model == ["algo-1"]


SERVICES = """
version: "3.8"
services:
  algo-1: &host
    image: {image}
    command: train
    environment: &job
      SM_HOSTS: '{hosts}'
      SM_CURRENT_HOST: algo-1
      SM_USER_ENTRY_POINT: train.py
      SM_MODULE_DIR: /code
      SM_FRAMEWORK_PARAMS: '{{"sagemaker_parameter_server_enabled": true}}'
      STEPS: "{steps}"
    restart: "{restart}"
    volumes: ["./code:/code:ro"]
"""

OTHER = """
  algo-{number}:
    <<: *host
    environment: {{<<: *job, SM_CURRENT_HOST: algo-{number}}}
"""


def custom_command(
    project: str, folder: Path, image: str, script: str, hosts: int = 2, restart: str = "no"
) -> List[str]:
    """Write a script and a Compose file; return the beginning of commands for it."""
    (folder / "code").mkdir()
    (folder / "code" / "train.py").write_text(script)
    names = json.dumps([f"algo-{number}" for number in range(1, hosts + 1)])
    services = SERVICES.format(image=image, hosts=names, steps=STEPS, restart=restart)
    others = "".join(OTHER.format(number=number) for number in range(2, hosts + 1))
    file = folder / "compose.yml"
    file.write_text(services + others)
    return [*compose_command(), "-f", str(file), "-p", project]


def custom_job(project: str, folder: Path, image: str, script: str) -> "Completed[str]":
    command = custom_command(project, folder, image, KVSTORE + script)
    try:
        return run(*command, "up", "--abort-on-container-exit", timeout=200, check=False)
    finally:
        run(*command, "down", timeout=120)


def test_abort_on_container_exit_cuts_nobody_short(
    project: str, tmp_path: Path, image: str
) -> None:
    """Compose stops everything when one container exits; so none exits before all are done."""
    script = """
push_and_pull()
if os.environ["SM_CURRENT_HOST"] == "algo-2":
    for _ in range(50):
        time.sleep(0.1)
say("last line of", os.environ["SM_CURRENT_HOST"])
"""
    done = custom_job(project, tmp_path, image, script)
    assert done.returncode == 0, done.stdout
    assert "last line of algo-1" in done.stdout
    assert "last line of algo-2" in done.stdout
    assert "still training: algo-2" in done.stdout
    assert done.stdout.count("the job SUCCEEDED") == 2


def test_one_cause_when_a_script_fails(project: str, tmp_path: Path, image: str) -> None:
    script = """
push_and_pull()
if os.environ["SM_CURRENT_HOST"] == "algo-2":
    raise ValueError("boom")
push_and_pull()
"""
    done = custom_job(project, tmp_path, image, script)
    assert done.returncode == 1, done.stdout
    cause = "cause: algo-2: worker failed: ValueError: boom (exit status 1)"
    assert done.stdout.count(cause) == 2, done.stdout


HOLD = """
        while number == STEPS // 2 and not os.path.exists("/code/go"):
            time.sleep(0.05)
""".strip().replace("STEPS", str(STEPS))
"""Keeps a job that ``COUNTED`` trains from its end, until the test has killed one of its hosts."""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: kills a container's first process")
def test_next_job_resumes_after_a_killed_host(project: str, tmp_path: Path, image: str) -> None:
    """Once before all hosts have joined, and once while they train."""
    script = COUNTED.replace("time.sleep(0.05)", HOLD)
    command = custom_command(project, tmp_path, image, script, 3, "on-failure:3")
    names = ("algo-1", "algo-2", "algo-3")

    containers: Dict[str, str] = {}

    def start(*hosts: str) -> None:
        run(*command, "up", "-d", *hosts, timeout=120)
        for host in hosts:
            containers[host] = run(*command, "ps", "-aq", host).stdout.strip()

    def output(host: str) -> str:
        return run("docker", "logs", containers[host]).stdout

    def inspect(host: str, fields: str) -> List[str]:
        return run("docker", "inspect", "--format", fields, containers[host]).stdout.split()

    def wait_until(check: Callable[[], object], what: str) -> Any:
        return eventually(check, what, 120, period=0.2)

    def restarts(host: str) -> int:
        return int(inspect(host, "{{.RestartCount}}")[0])

    def kill(host: str) -> None:
        # 0 where it does not run, which os.kill takes for the process group of the tests.
        pid = wait_until(lambda: int(inspect(host, "{{.State.Pid}}")[0]), f"{host} running")
        os.kill(pid, signal.SIGKILL)

    try:
        start("algo-1", "algo-2")
        wait_until(lambda: "algo-2 joined" in output("algo-1"), "joining")
        kill("algo-2")
        wait_until(lambda: restarts("algo-1") == restarts("algo-2") == 1, "the next job")
        start("algo-3")
        for host in names:
            wait_until(lambda host=host: "step 30 done" in output(host), f"training of {host}")
        checkpoints = ("docker", "exec", containers["algo-1"], "ls", "/opt/ml/checkpoints")
        # While one is written, it has another name in front.
        wait_until(lambda: "\ncheckpoint-" in f"\n{run(*checkpoints).stdout}", "a checkpoint")
        kill("algo-1")
        (tmp_path / "code/go").touch()
        counted = sum(number % 7 for number in range(STEPS))
        for host in names:
            wait_until(
                lambda host=host: (
                    inspect(host, "{{.State.Status}} {{.State.ExitCode}}") == ["exited", "0"]
                ),
                f"the success of {host}",
            )
            weights = re.findall(r"weights ([\d.-]+) ([\d.-]+)", output(host))
            expected = (1 - 0.003 * STEPS, 1 - 0.003 * counted)
            assert [float(text) for text in weights[-1]] == pytest.approx(expected, abs=1e-3)
        log = output("algo-1")
        assert log.count("step 0 done") == 1, f"the other time it resumes:\n{log}"
        assert [restarts(host) for host in names] == [2, 2, 1]
    finally:
        run(*command, "down", timeout=120)
