"""Real containers for tests, removed when the test ends."""

import json
import os
import re
import subprocess
import textwrap
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "sagemaker-mxnet-training:latest"

Completed = subprocess.CompletedProcess

KVSTORE = """
import mxnet as mx
import os, signal, sys, time

def say(*words):
    # One write: print() makes several, and another process's line may come between.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

kv = mx.kv.create("dist_sync")
kv.init("w", mx.nd.zeros(4))

def push_and_pull():
    value = mx.nd.zeros(4)
    kv.push("w", mx.nd.ones(4))
    kv.pull("w", out=value)
    return value.asnumpy()

"""
"""The beginning of a script that uses the parameter server."""

TRAIN = """
import os
import mxnet as mx
import numpy as np
from sagemaker_mxnet_training.training_utils import save

net = mx.gluon.nn.HybridSequential()
net.add(mx.gluon.nn.Dense(8, activation="relu"), mx.gluon.nn.Dense(3))
net.initialize()
net.hybridize()
trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1})
rows = mx.nd.random.uniform(shape=(5, 4))
for _ in range(3):
    with mx.autograd.record():
        loss = (net(rows) ** 2).sum()
    loss.backward()
    trainer.step(5)
save(os.environ["SM_MODEL_DIR"], net)
np.savez("/opt/ml/reference.npz", rows=rows.asnumpy(), answers=net(rows).asnumpy())
"""
"""A script that saves a model, some rows and the predictions for them."""


def run(*argv: str, timeout: float = 180, check: bool = True, **options: Any) -> "Completed[str]":
    """Run a program to its end; its output, both streams in one, is text."""
    done = subprocess.run(
        argv,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        **options,
    )
    assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}"
    return done


def wait_for_line(argv: Sequence[str], pattern: str, timeout: float = 180) -> None:
    """Run a program until a line of its output matches.

    One program that follows a log takes far less time than a new one for each look at it.
    """
    lines = []
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as program:
        assert program.stdout is not None
        timer = threading.Timer(timeout, program.kill)
        timer.start()
        try:
            for line in program.stdout:
                if re.search(pattern, line):
                    return
                lines.append(line)
        finally:
            timer.cancel()
            program.kill()
    raise AssertionError(
        f"{' '.join(argv)}: no line matches {pattern!r} within {timeout:g} s:\n{''.join(lines)}"
    )


def engine_answers() -> Optional[str]:
    """Return why no engine can be used here, if that is so."""
    try:
        done = run("docker", "version", "--format", "{{.Server.Version}}", check=False)
    except OSError as error:
        return str(error)
    return None if done.returncode == 0 else done.stdout.strip().splitlines()[-1]


@dataclass
class Container:
    """A container, running or ended."""

    name: str
    base: Path

    def status(self) -> Optional[int]:
        """Return its exit status, once it has one."""
        form = "{{.State.Running}} {{.State.ExitCode}}"
        running, status = run("docker", "inspect", "--format", form, self.name).stdout.split()
        return None if running == "true" else int(status)

    def wait(self, timeout: float = 180) -> int:
        """Return its exit status when it has ended."""
        try:
            return int(run("docker", "wait", self.name, timeout=timeout).stdout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} runs after {timeout:g} s:\n{self.log()}") from None

    def log(self) -> str:
        return run("docker", "logs", self.name).stdout

    def says(self, pattern: str, timeout: float = 180) -> None:
        """Wait until a line of its log matches, while it runs."""
        wait_for_line(["docker", "logs", "--follow", self.name], pattern, timeout)

    @property
    def failure(self) -> str:
        return (self.base / "output" / "failure").read_text()

    @property
    def succeeded(self) -> bool:
        return (self.base / "output" / "success").exists()


class Engine:
    """Starts containers and networks, and removes them in the end."""

    def __init__(self, folder: Path) -> None:
        self.id = f"smx-{uuid.uuid4().hex[:10]}"
        self.folder = folder
        self._containers: List[str] = []
        self._networks: List[str] = []

    def network(self) -> str:
        run("docker", "network", "create", self.id)
        self._networks.append(self.id)
        return self.id

    def start(
        self,
        host: str,
        *command: str,
        env: Optional[Mapping[str, str]] = None,
        options: Sequence[str] = (),
        image: str = IMAGE,
    ) -> Container:
        """Start a container with its own ``/opt/ml``, which the test can look into."""
        base = self.folder / host
        base.mkdir(parents=True, exist_ok=True)
        container = Container(f"{self.id}-{host}", base)
        variables = [word for item in (env or {}).items() for word in ("-e", "=".join(item))]
        self._containers.append(container.name)
        run(
            *("docker", "run", "--detach", "--name", container.name, "-v", f"{base}:/opt/ml"),
            *("--user", f"{os.getuid()}:{os.getgid()}"),
            *variables,
            *options,
            image,
            *command,
        )
        return container

    def job(
        self,
        hosts: int,
        *script: str,
        kvstore: bool = True,
        env: Optional[Mapping[str, str]] = None,
        options: Sequence[str] = (),
        only: Optional[Mapping[int, Sequence[str]]] = None,
        files: Optional[Mapping[str, bytes]] = None,
    ) -> List[Container]:
        """Start a job of several hosts on a network of its own, configured by ``SM_*`` alone.

        Args:
            hosts: how many hosts.
            script: the pieces of the user's script.
            kvstore: with the parameter server; the script then begins with ``KVSTORE``.
            env: more variables.
            options: more options of ``docker run``, for every host.
            only: more options of ``docker run``, for one host, by its number.
            files: more files beside the script.
        """
        code = self.folder / "user-code"
        code.mkdir()
        pieces = [KVSTORE, *script] if kvstore else script
        code.joinpath("train.py").write_text("".join(map(textwrap.dedent, pieces)))
        for name, content in (files or {}).items():
            code.joinpath(name).write_bytes(content)
        names = [f"algo-{number}" for number in range(1, hosts + 1)]
        network = self.network()
        return [
            self.start(
                name,
                "train",
                env={**job_variables(name, names, kvstore), **(env or {})},
                options=[
                    *("--network", network, "--network-alias", name, "-v", f"{code}:/code:ro"),
                    *options,
                    *(only or {}).get(number, ()),
                ],
            )
            for number, name in enumerate(names, 1)
        ]

    def close(self) -> None:
        for name in self._containers:
            run("docker", "rm", "--force", "--volumes", name, check=False)
        for name in self._networks:
            run("docker", "network", "rm", name)


@dataclass
class Trained:
    """Files and output of a job.

    Attributes:
        model: the model's directory.
        rows: some input.
        answers: what the network makes of it.
    """

    model: Path
    rows: Any
    answers: Any


def train_model(engine: Engine) -> Trained:
    """Run a job that saves a model."""
    import numpy as np

    code = engine.folder / "code"
    code.mkdir()
    (code / "train.py").write_text(TRAIN)
    container = engine.start(
        "trainer",
        "train",
        env={"SM_USER_ENTRY_POINT": "train.py", "SM_MODULE_DIR": "/code"},
        options=("-v", f"{code}:/code:ro"),
    )
    assert container.wait() == 0, container.log()
    with np.load(container.base / "reference.npz") as reference:
        return Trained(container.base / "model", reference["rows"], reference["answers"])


def job_variables(host: str, hosts: Iterable[str], kvstore: bool) -> Dict[str, str]:
    """Return the ``SM_*`` variables that describe a job whose code is at ``/code``."""
    return {
        "SM_CURRENT_HOST": host,
        "SM_HOSTS": json.dumps(list(hosts)),
        "SM_USER_ENTRY_POINT": "train.py",
        "SM_MODULE_DIR": "/code",
        "SM_FRAMEWORK_PARAMS": json.dumps({"sagemaker_parameter_server_enabled": kvstore}),
    }
