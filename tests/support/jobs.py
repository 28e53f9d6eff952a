"""Real jobs for tests: an entrypoint per host, whose output and end can be observed.

Hosts are processes on the loopback interface or, with ``Network``, in network namespaces of their
own, which can be disconnected.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence

import psutil

ENDS = 60.0
"""Seconds after which a job in a test counts as hung. No test measures time with it."""


def eventually(
    check: Callable[[], Any], what: str, timeout: float = ENDS, period: float = 0.02
) -> Any:
    """Poll until ``check`` returns something true, and return that.

    Args:
        check: what to call.
        what: description for the error.
        timeout: seconds after which it is an error.
        period: seconds between two calls; longer where ``check`` runs a program.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout:g} s"
        time.sleep(period)


def free_port() -> int:
    """Return a port outside the range of outgoing connections."""
    for port in iter(lambda: 10000 + int.from_bytes(os.urandom(2), "big") % 20000, None):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError


@dataclass
class Ended:
    """Result of an entrypoint."""

    status: int
    at: float
    failure: Optional[str]
    success: bool
    output: str

    @property
    def cause(self) -> str:
        """The first line of the failure file."""
        assert self.failure is not None, f"no failure file; output:\n{self.output}"
        return self.failure.splitlines()[0]


class Host:
    """One entrypoint, its base directory, and the lines that it has printed so far."""

    def __init__(
        self,
        name: str,
        base: Path,
        argv: Sequence[str],
        env: Mapping[str, str],
        before: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.base = base
        self.argv = argv
        self.env = env
        self.lines: List[str] = list(before)
        self.ended_at: Optional[float] = None
        self.process = subprocess.Popen(
            argv,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=str(base),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._waiter.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))

    def _wait(self) -> None:
        self.process.wait()
        self.ended_at = time.monotonic()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, timeout: float = ENDS) -> "re.Match[str]":
        """Wait until a matching line has been printed."""

        def look() -> Optional["re.Match[str]"]:
            if self.process.poll() is not None and not self._reader.is_alive():
                found = re.search(pattern, self.output, re.MULTILINE)
                assert found, f"{self.name} ended without {pattern!r}; output:\n{self.output}"
            return re.search(pattern, self.output, re.MULTILINE)

        try:
            return eventually(look, f"{self.name} printing {pattern!r}", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; output:\n{self.output}") from None

    def pid(self, role: str) -> int:
        """Return the process id of a role, once it has started."""
        if role == "entrypoint":
            return self.process.pid
        return int(self.wait_for(rf"{self.name} {role}: started \(process (\d+)\)").group(1))

    def kill(self, role: str, number: int = signal.SIGKILL) -> float:
        """Send a signal to the process of a role; return the time (monotonic, seconds)."""
        pid = self.pid(role)
        now = time.monotonic()
        os.kill(pid, number)
        return now

    def ended(self, timeout: float = ENDS) -> Ended:
        """Wait for the entrypoint's end."""
        try:
            eventually(lambda: self.ended_at is not None, f"the end of {self.name}", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; output:\n{self.output}") from None
        self._reader.join(5)
        assert self.ended_at is not None
        failure = self.base / "output" / "failure"
        code = self.process.returncode
        return Ended(
            status=128 - code if code < 0 else code,
            at=self.ended_at,
            failure=failure.read_text() if failure.exists() else None,
            success=(self.base / "output" / "success").exists(),
            output=self.output,
        )


class Cluster:
    """The hosts of a job. As a context manager, it kills all processes of the job at the end."""

    def __init__(self, hosts: Sequence[Host], run_dir: Path) -> None:
        self.hosts = list(hosts)
        self.run_dir = run_dir

    def __getitem__(self, number: int) -> Host:
        """Return ``algo-<number>``."""
        return self.hosts[number - 1]

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            with contextlib.suppress(ProcessLookupError):
                host.process.send_signal(signal.SIGKILL)
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def lose(self, number: int) -> None:
        """Kill a host's entrypoint and then all of its processes, as the end of a container does.

        They count as gone when they are: then the host can be started again.
        """
        host = self[number]
        host.kill("entrypoint")
        host.ended()

        def gone() -> bool:
            left = self.processes(host.base)
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            return not left

        eventually(gone, f"the end of all processes of {host.name}")

    def start_again(self, number: int) -> None:
        """Start a host again that was lost. Its lines come behind those that it has printed."""
        old = self[number]
        self.hosts[number - 1] = Host(old.name, old.base, old.argv, old.env, old.lines)

    def processes(self, below: Optional[Path] = None) -> List[psutil.Process]:
        """Return all living processes of the job: those with its run directory in a variable.

        Args:
            below: the directory of one host; by default that of the job.
        """
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                base = process.environ().get("SAGEMAKER_BASE_DIR", "")
                zombie = process.status() == psutil.STATUS_ZOMBIE
                if base.startswith(str(below or self.run_dir)) and not zombie:
                    found.append(process)
        return found

    def ended(self, timeout: float = ENDS) -> List[Ended]:
        """Wait for the end of every entrypoint, and of every process of the job."""
        ends = [host.ended(timeout) for host in self.hosts]
        eventually(lambda: not self.processes(), "the end of every process", 10)
        return ends

    def wait_for(self, pattern: str) -> None:
        """Wait until every host has printed a matching line."""
        for host in self.hosts:
            host.wait_for(pattern)


PREAMBLE = """
import os, signal, sys, threading, time
host = os.environ["SM_CURRENT_HOST"]

def say(*words):
    # One write: unbuffered, print() makes several, and another process's line may come between.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def wait_for_ever():
    while True:
        time.sleep(0.05)
"""

KVSTORE = """
import mxnet as mx
kv = mx.kv.create(os.environ.get("KVSTORE", "dist_sync"))

def init():
    kv.init("w", mx.nd.zeros((4,)))

def push_and_pull():
    kv.push("w", mx.nd.ones((4,)))
    out = mx.nd.zeros((4,))
    kv.pull("w", out=out)
    return out.asnumpy()
"""


def script(body: str, kvstore: bool = False) -> str:
    """Return a user's script: helpers, the kvstore on request, and a body."""
    return PREAMBLE + (KVSTORE if kvstore else "") + textwrap.dedent(body)


PASSED_ON = ("COVERAGE_", "LD_LIBRARY_PATH", "OPENBLAS_", "PIP_", "PYTHONPATH", "SSL_")
"""Prefixes of the variables that jobs inherit from the test run, unlike jobs in a container."""

IN_GROUP = """
import os, sys
with open(os.environ["GROUP"] + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
from sagemaker_mxnet_cli.command_line import main
main(["train"])
"""
"""The entrypoint, in the control group that the variable GROUP names."""

IMPATIENT = """
from sagemaker_mxnet_training.cluster import coordinator
coordinator.PROGRESS_PERIOD = 2.0
from sagemaker_mxnet_cli.command_line import main
main(["train"])
"""
"""The entrypoint, which logs what it waits for every two seconds."""


class Network:
    """Hosts in network namespaces of their own, on one bridge. Needs root and iproute2.

    The bridge has a namespace, too: in the machine's own, the rules of a Docker engine would drop
    the packets that it forwards.
    """

    _numbers = itertools.count(1)

    def __init__(self, count: int) -> None:
        number = next(self._numbers)
        self._running: List[subprocess.Popen[bytes]] = []
        self._tag = f"smx{os.getpid()}x{number}"
        self._switch = f"{self._tag}s"
        self.subnet = f"10.{os.getpid() % 200 + 20}.{number % 250}"
        self.names = [f"algo-{i}" for i in range(1, count + 1)]
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge0", "up")
        for index in range(1, count + 1):
            space, port = self.space(index), f"port{index}"
            _ip("netns", "add", space)
            _ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0",
                "netns", space)  # fmt: skip
            _ip("-n", self._switch, "link", "set", port, "master", "bridge0", "up")
            _ip("-n", space, "addr", "add", f"{self.address(index)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def space(self, index: int) -> str:
        return f"{self._tag}n{index}"

    def address(self, index: int) -> str:
        return f"{self.subnet}.{index}"

    def addresses(self) -> Dict[str, str]:
        return {name: self.address(i) for i, name in enumerate(self.names, 1)}

    def cut(self, index: int) -> None:
        """Disconnect a host from the network."""
        _ip("-n", self._switch, "link", "set", f"port{index}", "down")

    def heal(self, index: int) -> None:
        """Connect a host again."""
        _ip("-n", self._switch, "link", "set", f"port{index}", "up")

    def slow(self, index: int, kilobits: int) -> None:
        """Limit what a host sends, in kilobits per second."""
        limit = ["rate", f"{kilobits}kbit", "burst", "16kb", "latency", "400ms"]
        space = self.space(index)
        subprocess.run(
            ["tc", "-n", space, "qdisc", "add", "dev", "eth0", "root", "tbf", *limit], check=True
        )

    def run(
        self, index: int, command: Sequence[str], env: Optional[Mapping[str, str]] = None
    ) -> "subprocess.Popen[bytes]":
        """Start another program in a host's namespace; it is killed with the network."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.space(index), *command],
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._running.append(process)
        return process

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.kill()
            process.communicate()
        for space in [*map(self.space, range(1, len(self.names) + 1)), self._switch]:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", space)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def job(
    tmp_path: Path,
    body: str,
    hosts: int = 1,
    kvstore: Optional[bool] = None,
    parameter_server: Optional[bool] = None,
    processes: int = 0,
    env: Optional[Mapping[str, str]] = None,
    hyperparameters: Optional[Mapping[str, Any]] = None,
    files: Optional[Mapping[str, str]] = None,
    entry_point: str = "train.py",
    network: Optional[Network] = None,
    command: Sequence[str] = ("-m", "sagemaker_mxnet_training", "train"),
    absent: Sequence[int] = (),
    per_host: Optional[Callable[[int], Mapping[str, str]]] = None,
    prepare: Optional[Callable[[int, Path], None]] = None,
) -> Iterator[Cluster]:
    """Start a job, and kill what is left of it at the end.

    Args:
        tmp_path: holds the base directory of each host.
        body: of the user's script, which is the same on every host.
        hosts: number of hosts, ``algo-1`` and so on.
        kvstore: let the script create a kvstore first.
        parameter_server: switch the parameter server on; as ``kvstore`` by default.
        processes: train with Horovod, in so many workers on each host.
        env: variables of every host; an empty one is not set.
        hyperparameters: of the job.
        files: other files of the code directory.
        entry_point: name of the script; ``body`` is its whole text if it is not a ``.py`` file.
        network: namespaces to run the hosts in.
        command: arguments of Python that start the entrypoint.
        absent: numbers of hosts that are never started.
        per_host: returns variables of one host.
        prepare: may change a host's base directory before it is started.
    """
    use_kvstore = bool(kvstore)
    server = use_kvstore if parameter_server is None else parameter_server
    names = [f"algo-{number}" for number in range(1, hosts + 1)]
    addresses = network.addresses() if network else dict.fromkeys(names, "127.0.0.1")
    control_port = free_port()
    started = []
    for number, name in enumerate(names, 1):
        base = tmp_path / name
        code = base / "code"
        for directory in ("code", "model", "input/config", "output/data", "checkpoints"):
            (base / directory).mkdir(parents=True, exist_ok=True)
        (code / entry_point).parent.mkdir(parents=True, exist_ok=True)
        (code / entry_point).write_text(
            script(body, use_kvstore) if entry_point.endswith(".py") else body
        )
        for path, content in (files or {}).items():
            (code / path).parent.mkdir(parents=True, exist_ok=True)
            (code / path).write_text(content)
        if prepare is not None:
            prepare(number, base)
        if number in absent:
            continue
        framework: Dict[str, Any] = {"sagemaker_parameter_server_enabled": server}
        if processes:
            framework["sagemaker_mpi_enabled"] = True
            framework["sagemaker_mpi_num_of_processes_per_host"] = processes
        variables: Dict[str, str] = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": os.environ.get("HOME", "/"),
            "SAGEMAKER_BASE_DIR": str(base),
            "SM_HOSTS": json.dumps(names),
            "SM_CURRENT_HOST": name,
            "SM_USER_ENTRY_POINT": entry_point,
            "SM_HPS": json.dumps(dict(hyperparameters or {})),
            "SM_FRAMEWORK_PARAMS": json.dumps(framework),
            "SM_LOG_LEVEL": "10",  # tests find processes by what the log says of them
            "SAGEMAKER_MXNET_HOST_ADDRESSES": json.dumps(addresses),
            "SAGEMAKER_MXNET_CONTROL_PORT": str(control_port),
            "SAGEMAKER_MXNET_PS_PORT": "0",
        }
        for passed in os.environ:
            if passed.startswith(PASSED_ON):
                variables[passed] = os.environ[passed]
        variables.update(env or {})
        if per_host is not None:
            variables.update(per_host(number))
        variables = {name: value for name, value in variables.items() if value}
        argv = [sys.executable, *command]
        if network is not None:
            argv = ["ip", "netns", "exec", network.space(number), *argv]
        started.append(Host(name, base, argv, variables))
    with Cluster(started, tmp_path) as cluster:
        yield cluster
