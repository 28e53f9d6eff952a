"""Measures serving: this program, the released peer, and ONNX Runtime behind the same HTTP library.

All have two workers, the same models and the same bodies, and are measured in turn with wrk.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Dict, Iterator, List, Mapping, Optional, Tuple

import psutil

from benchmarks.jobs import CODE
from benchmarks.table import Row, line, machine, table

WORKERS = 2
START_BOUND = 120.0
"""Seconds that a server has until it answers."""

FORMATS = {
    "JSON": ("body.json", "application/json", "application/json"),
    "NPY": ("body.npy", "application/x-npy", "application/json"),
    "CSV": ("body.csv", "text/csv", "application/json"),
}
"""File, content type and Accept header of each kind of request."""

Sample = Dict[str, float]


@dataclass(frozen=True)
class Server:
    """A program that serves a model.

    Attributes:
        name: heads its figures.
        argv: its command line.
        port: where it listens, on the loopback interface.
        environment: what it gets beside our own environment.
    """

    name: str
    argv: Tuple[str, ...]
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Started:
    """A server that answers, and how long that took (seconds)."""

    server: Server
    process: psutil.Process
    ping: float
    answer: float

    def proportional(self) -> float:
        """Return the memory of all its processes in MB, what is shared divided by its sharers."""
        return sum(each.memory_full_info().pss for each in family(self.process.pid)) / 1e6

    def cpu(self) -> float:
        """Return the seconds of CPU that its processes have taken."""
        times = [each.cpu_times() for each in family(self.process.pid)]
        return sum(each.user + each.system for each in times)


def family(leader: int) -> List[psutil.Process]:
    """Return the processes of a session, and those that they started in sessions of their own.

    The peer's Java process is nobody's child any more.
    """
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader:
                for each in [process, *process.children(recursive=True)]:
                    if each.status() != psutil.STATUS_ZOMBIE:
                        found[each.pid] = each
    return list(found.values())


@contextlib.contextmanager
def started(server: Server, body: Path) -> Iterator[Started]:
    """Start a server; end it, and all that it started, at the end of the block."""
    log = tempfile.TemporaryFile()  # noqa: SIM115  (closed below, after the server)
    # The peer writes its logs into the working directory.
    directory = tempfile.mkdtemp(prefix="benchmark-")
    began = time.monotonic()
    popen = subprocess.Popen(
        server.argv,
        env={**os.environ, **server.environment},
        stdout=log,
        stderr=log,
        cwd=directory,
        start_new_session=True,
    )
    process = psutil.Process(popen.pid)
    try:

        def wait_for(path: str, data: Optional[bytes] = None) -> float:
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            request = urllib.request.Request(server.url + path, data, headers)
            while popen.poll() is None and time.monotonic() - began < START_BOUND:
                try:
                    with urllib.request.urlopen(request, timeout=START_BOUND) as answer:
                        if answer.status == 200:
                            return time.monotonic() - began
                except (OSError, urllib.error.HTTPError):
                    time.sleep(0.02)
            log.seek(0)
            said = log.read().decode("utf-8", "replace")[-4000:]
            raise SystemExit(f"{server.name} does not answer {path}:\n{said}")

        ping = wait_for("/ping")
        yield Started(server, process, ping, wait_for("/invocations", body.read_bytes()))
    finally:
        popen.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(10)
        for each in family(popen.pid):
            with contextlib.suppress(psutil.Error):
                each.kill()
        popen.wait()
        log.close()
        shutil.rmtree(directory, ignore_errors=True)


def load(running: Started, directory: Path, kind: str, connections: int, seconds: float) -> Sample:
    """Post one body over some connections for some seconds; return what wrk saw, and the CPU."""
    name, content_type, accept = FORMATS[kind]
    before = running.cpu()
    done = subprocess.run(
        [
            "wrk",
            "--threads=1",
            f"--connections={connections}",
            f"--duration={seconds:g}s",
            "--timeout=30s",
            f"--script={CODE / 'post.lua'}",
            f"{running.server.url}/invocations",
        ],
        env={
            **os.environ,
            "BODY": str(directory / name),
            "CONTENT_TYPE": content_type,
            "ACCEPT": accept,
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    sample = dict(json.loads(done.stdout.splitlines()[-1]))
    sample["CPU of a request"] = 1e3 * (running.cpu() - before) / max(1.0, sample["rate"] * seconds)
    return sample


def floor(model: Path, seconds: float) -> float:
    """Return the predictions per second of ``WORKERS`` bare executors, each in a loop."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(CODE / "executor.py"), str(model), str(seconds)]
    loops = [
        subprocess.Popen(command, env=environment, stdout=-1, stderr=-3) for _ in range(WORKERS)
    ]
    return sum(float(each.communicate()[0]) for each in loops)


@dataclass(frozen=True)
class Plan:
    """What is measured of one model.

    Attributes:
        title: of its rows.
        targets: of the rate at 4 connections, by kind of request.
        p99: connections, and the target of the 99th percentile there (NPY).
        memory: the target of the memory; 0 for none.
    """

    title: str
    targets: Mapping[str, float]
    p99: Tuple[int, float]
    memory: float = 0.0


PLANS = {
    "mlp": Plan("MLP", {"JSON": 5.0, "NPY": 5.0, "CSV": 15.0}, (1, 0.3)),
    "resnet": Plan("ResNet-18", {"JSON": 1.7, "NPY": 1.3}, (16, 0.8), 0.5),
}


def measure(
    name: str, directory: Path, servers: Mapping[str, Server], rounds: int, seconds: float
) -> Iterator[Row]:
    """Measure one model on all servers."""
    plan = PLANS[name]
    with contextlib.ExitStack() as stack:
        running = {
            who: stack.enter_context(started(server, directory / "body.json"))
            for who, server in servers.items()
        }
        ours, peer = running["ours"], running["peer"]
        title = plan.title
        yield Row(f"{title}: start to ping", "s", [ours.ping], [peer.ping], target=0.5)
        yield Row(f"{title}: start to first answer", "s", [ours.answer], [peer.answer])
        best: Dict[str, List[float]] = {}
        for kind in FORMATS:
            if kind == "CSV" and name == "resnet":
                continue  # the peer answers none within a run
            for connections in (1, 4, 16):
                seen: Dict[str, List[Sample]] = {who: [] for who in running}
                for number in range(rounds):
                    order = list(running) if number % 2 == 0 else list(reversed(running))
                    for who in order:
                        if who == "onnx" and kind == "CSV":
                            continue
                        sample = load(running[who], directory, kind, connections, seconds)
                        seen[who].append(sample)
                failed = sum(int(each["failed"]) for each in seen["ours"])
                if failed:
                    raise SystemExit(f"{failed} requests failed: {title} {kind} {connections}")
                what = f"{title} {kind}, {connections} connections"
                rates = {who: [each["rate"] for each in samples] for who, samples in seen.items()}
                yield Row(
                    f"{what}: rate",
                    "requests/s",
                    rates["ours"],
                    rates["peer"],
                    target=plan.targets.get(kind, 0.0) if connections == 4 else 0.0,
                    higher_is_better=True,
                )
                best.setdefault(kind, []).append(median(rates["ours"]))
                if rates["onnx"]:
                    yield Row(
                        f"{what}: rate, beside ONNX Runtime in uvicorn",
                        "requests/s",
                        rates["ours"],
                        rates["onnx"],
                    )
                for figure in ("p50", "p99", "CPU of a request"):
                    values = {who: [each[figure] for each in seen[who]] for who in seen}
                    wanted = figure == "p99" and connections == plan.p99[0]
                    target = plan.p99[1] if wanted and kind == "NPY" else 0.0
                    yield Row(
                        f"{what}: {figure}", "ms", values["ours"], values["peer"], target=target
                    )
        memory = [ours.proportional()], [peer.proportional()]
        yield Row(f"{title}: memory (PSS)", "MB", *memory, target=plan.memory)
    bare = [floor(directory / "model", seconds) for _ in range(rounds)]
    yield Row(
        f"{title} NPY: best rate, beside {WORKERS} bare executors",
        "requests/s",
        [max(best["NPY"])],
        bare,
        target=0.9 if name == "resnet" else 0.0,
        higher_is_better=True,
    )


def servers_of(name: str, directory: Path, peer: Path) -> Dict[str, Server]:
    """Return the servers of one model. The peer wants a script, and a base directory of its own."""
    model = directory / name / "model"
    base = directory / name / "peer"
    shutil.copytree(model, base / "model")
    (base / "model" / "code").mkdir()
    (base / "model" / "code" / "inference.py").write_text("")
    programs = Path(sys.executable).parent
    onnx = directory / name / "model.onnx"
    command = str(programs / "sagemaker-mxnet-training")
    subprocess.run([command, "export", str(model), "--onnx", str(onnx)], check=True, stdout=-3)
    return {
        "ours": Server(
            "ours",
            (command, "serve", "--model-dir", str(model), "--port=18080", f"--workers={WORKERS}"),
            18080,
        ),
        "peer": Server(
            "peer",
            (str(peer.parent / "serve"),),
            18081,
            {
                "PATH": f"{peer.parent}{os.pathsep}{os.environ['PATH']}",
                "SAGEMAKER_BASE_DIR": str(base),
                "SAGEMAKER_PROGRAM": "inference.py",
                "SAGEMAKER_SUBMIT_DIRECTORY": str(base / "model" / "code"),
                "SAGEMAKER_MODEL_SERVER_WORKERS": str(WORKERS),
                "SAGEMAKER_BIND_TO_PORT": "18081",
            },
        ),
        "onnx": Server(
            "onnx",
            (sys.executable, str(CODE / "onnx_server.py"), str(onnx), "18082", str(WORKERS)),
            18082,
        ),
    }


def main() -> None:
    """Take the figures that the command line asks for."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark.sh --serving", description=__doc__)
    parser.add_argument("--peer", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement; default 3")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round; default 4")
    parser.add_argument("--only", action="append", choices=PLANS, metavar="MODEL")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed; on Debian: apt-get install wrk")
    rows: List[Row] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as text:
        directory = Path(text)
        command = [sys.executable, str(CODE / "models.py"), text]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        for name in options.only or PLANS:
            servers = servers_of(name, directory, options.peer.absolute())
            for row in measure(name, directory / name, servers, options.rounds, options.seconds):
                rows.append(row)
                print(
                    f"{time.monotonic() - began:5.0f} s  {line(row)}", file=sys.stderr, flush=True
                )
    print(table(rows))
    print(f"\n{machine()}; {(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
