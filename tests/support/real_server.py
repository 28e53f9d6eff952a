"""A real server for tests, with a script that does what a request says."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

import psutil

from tests.support.jobs import eventually, free_port

SCRIPT = """
import ctypes, os, signal, sys, time

def model_fn(model_dir):
    return {"loaded": os.getpid()}

def transform_fn(model, body, content_type, accept):
    word, _, rest = bytes(body).partition(b" ")
    if word == b"worker":
        return str(os.getpid())
    if word == b"loaded":
        return str(model["loaded"])
    if word == b"sleep":
        time.sleep(float(rest))
        return str(os.getpid())
    if word == b"wait":
        while not os.path.exists(rest):
            time.sleep(0.01)
        return str(os.getpid())
    if word == b"once":
        # Dies over the request the first time.
        if not os.path.exists(rest):
            open(rest, "w").close()
            os._exit(7)
        return "twice"
    if word == b"exit":
        os._exit(7)
    if word == b"leave":
        # Dies, and its child does not.
        if os.fork() == 0:
            time.sleep(float(rest))
        os._exit(7)
    if word == b"crash":
        ctypes.string_at(0)
    if word == b"raise":
        raise ValueError("hidden-" + rest.decode())
    if word == b"long":
        return b"x" * int(rest)
    if word == b"hang":
        signal.pause()
    return bytes(body)
"""


@dataclass
class Answer:
    """What came back."""

    status: int
    body: bytes
    headers: Dict[str, str]


class Served:
    """A running server."""

    def __init__(self, port: int, process: "subprocess.Popen[bytes]") -> None:
        self.port = port
        self.process = process
        self.lines: List[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_for_log(self, text: str) -> str:
        """Wait until a text is in the log, and return the line that it is in.

        Several processes write the log, each in its own time: a line may come after an answer, and
        what ``print`` writes may be joined by another process before its newline.
        """
        found = eventually(
            lambda: next((line for line in list(self.lines) if text in line), None),
            f"{text!r} in the log",
        )
        return str(found)

    def ask(
        self,
        method: str,
        path: str,
        body: Optional[bytes] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout: float = 60,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, response.read(), names)

    def invoke(self, body: bytes, **headers: str) -> Answer:
        kind = {"Content-Type": "application/octet-stream"}
        return self.ask("POST", "/invocations", body, {**kind, **headers})

    def metrics(self, port: int) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
            return str(response.read().decode())

    def ping(self) -> int:
        try:
            return self.ask("GET", "/ping").status
        except OSError:
            return 0

    def healthy(self) -> "Served":
        def check() -> bool:
            assert self.process.poll() is None, f"the server has ended:\n{self.log}"
            return self.ping() == 200

        eventually(check, "a healthy ping")
        return self

    def model_process(self) -> psutil.Process:
        def find() -> Optional[psutil.Process]:
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.Error):  # it has just ended
                    if any("model_process" in word for word in child.cmdline()):
                        return child
            return None

        found = eventually(find, "a model process")
        assert isinstance(found, psutil.Process)
        return found

    def workers(self) -> List[int]:
        while True:
            with contextlib.suppress(psutil.Error):  # the model process has just ended
                return sorted(child.pid for child in self.model_process().children())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def ended(self) -> int:
        status = self.process.wait(60)
        self._reader.join(10)
        return status


def write_model(folder: Path, script: str = SCRIPT, requirements: str = "") -> Path:
    """Write a model directory that has a script only."""
    code = folder / "code"
    code.mkdir(parents=True)
    (code / "inference.py").write_text(script)
    if requirements:
        (code / "requirements.txt").write_text(requirements)
    return folder


@contextlib.contextmanager
def serving(
    model_dir: Path,
    *arguments: str,
    port: Optional[int] = None,
    prefix: Sequence[str] = (),
    **variables: Any,
) -> Iterator[Served]:
    """Start a server; end it, and all that it has started, afterwards."""
    port = port or free_port()
    argv: Sequence[str] = (
        *(*prefix, sys.executable, "-m", "sagemaker_mxnet_training", "serve"),
        *("--model-dir", str(model_dir), "--port", str(port), *arguments),
    )
    environ = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    process = subprocess.Popen(
        argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/"
    )
    served = Served(port, process)
    try:
        yield served
    finally:
        if process.poll() is None:
            below = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                for each in below:
                    with contextlib.suppress(psutil.Error):
                        each.kill()
                process.kill()
                process.wait()
