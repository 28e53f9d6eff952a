"""Runs one job, N hosts on this machine, under either toolkit, and watches it from outside.

Hosts are called 127.0.0.1, 127.0.0.2, ...: names that resolve everywhere, so that neither toolkit
needs containers, root or a setting of its own. All clocks are the machine's monotonic one.
"""

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import psutil

CODE = Path(__file__).resolve().parent / "code"


@dataclass(frozen=True)
class Toolkit:
    """One of the two programs that are compared.

    Attributes:
        name: heads its column.
        python: interpreter of the environment that it is installed in.
        command: the entrypoint, a program of that environment.
        module: what an image has to import to run it.
        variables: what an image sets for it.
    """

    name: str
    python: Path
    command: Tuple[str, ...]
    module: str
    variables: Mapping[str, str] = field(default_factory=dict)

    def argv(self) -> List[str]:
        """Return the command line of the entrypoint."""
        return [str(self.python.parent / self.command[0]), *self.command[1:]]


@dataclass(frozen=True)
class Entrypoint:
    """What the entrypoint of the first host takes while the script trains, all its processes.

    Attributes:
        resident: bytes of resident memory, counted once for each process.
        proportional: bytes of memory, what is shared divided by those who share it.
        cpu: share of one CPU.
    """

    resident: int
    proportional: int
    cpu: float


@dataclass(frozen=True)
class Observed:
    """What was seen of a job.

    Attributes:
        began: when the entrypoints were started.
        marks: what the script of each host noted: its times, and its values.
        ended: when each entrypoint ended; ``None`` for one that had to be killed.
        statuses: their exit statuses.
        entrypoint: where it was asked for.
        output: what the first host printed.
    """

    began: float
    marks: Tuple[Mapping[str, float], ...]
    ended: Tuple[Optional[float], ...]
    statuses: Tuple[Optional[int], ...]
    entrypoint: Optional[Entrypoint]
    output: str

    def last(self, mark: str) -> float:
        """Return when the last host reached a mark."""
        try:
            return max(marks[mark] for marks in self.marks)
        except KeyError:
            raise SystemExit(f"no host may miss {mark!r}: {self.marks}\n{self.output}") from None

    def mean(self, mark: str) -> float:
        """Return the mean of what the hosts noted."""
        return sum(marks[mark] for marks in self.marks) / len(self.marks)

    def exit(self) -> float:
        """Return when the last entrypoint had ended, all well."""
        times = [when for when in self.ended if when is not None]
        if any(self.statuses) or len(times) < len(self.ended):
            raise SystemExit(f"the job failed: {self.statuses}\n{self.output}")
        return max(times)


def run(
    toolkit: Toolkit,
    directory: Path,
    script: str,
    hosts: int = 1,
    server: bool = False,
    hyperparameters: Optional[Mapping[str, object]] = None,
    requirements: str = "",
    variables: Optional[Mapping[str, str]] = None,
    watch: Tuple[str, float] = ("", 0.0),
    timeout: float = 120.0,
) -> Observed:
    """Run a job to its end, or kill it after ``timeout`` seconds, with all that it started.

    Args:
        toolkit: whose entrypoint.
        directory: for the hosts' base directories; emptied before.
        script: a file in ``code``.
        hosts: how many.
        server: whether the parameter server is on.
        hyperparameters: the script's.
        requirements: content of ``requirements.txt``.
        variables: more for the environment of every host.
        watch: from which mark of the first host on, and for how many seconds, to look at what
            its entrypoint takes.
        timeout: seconds.
    """
    shutil.rmtree(directory, ignore_errors=True)
    names = [f"127.0.0.{number}" for number in range(1, hosts + 1)]
    for name in names:
        _lay_out(directory / name, name, names, script, server, hyperparameters or {}, requirements)
    base = {name: text for name, text in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    base["PATH"] = f"{toolkit.python.parent}{os.pathsep}{base['PATH']}"
    base.update(toolkit.variables)
    base.update(variables or {})
    ended: Dict[int, float] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(_kill_all, directory)
        began = time.monotonic()
        processes = []
        for name in names:
            output = stack.enter_context(open(directory / name / "log", "wb"))
            environment = {**base, "SAGEMAKER_BASE_DIR": str(directory / name)}
            processes.append(
                subprocess.Popen(
                    toolkit.argv(),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=directory / name,
                )
            )
        waiters = [
            threading.Thread(target=_wait, args=(process, ended, number), daemon=True)
            for number, process in enumerate(processes)
        ]
        for waiter in waiters:
            waiter.start()
        deadline = began + timeout
        entrypoint = _watch(directory / names[0], processes[0], *watch, deadline)
        for waiter in waiters:
            waiter.join(max(0.0, deadline - time.monotonic()))
        return Observed(
            began,
            tuple(_marks(directory / name) for name in names),
            tuple(ended.get(number) for number in range(hosts)),
            tuple(process.returncode for process in processes),
            entrypoint,
            (directory / names[0] / "log").read_text(errors="replace")[-4000:],
        )


def _lay_out(
    base: Path,
    name: str,
    names: Sequence[str],
    script: str,
    server: bool,
    hyperparameters: Mapping[str, object],
    requirements: str,
) -> None:
    """Write what SageMaker puts into a container."""
    for made in ("input/config", "input/data", "code", "model", "output/data"):
        (base / made).mkdir(parents=True)
    for file in (script, "marks.py"):
        shutil.copy(CODE / file, base / "code")
    if requirements:
        (base / "code" / "requirements.txt").write_text(requirements)
    parameters = {
        **{key: json.dumps(value) for key, value in hyperparameters.items()},
        "sagemaker_program": json.dumps(script),
        "sagemaker_submit_directory": json.dumps(str(base / "code")),
        "sagemaker_parameter_server_enabled": json.dumps(server),
        "sagemaker_region": json.dumps("us-west-2"),
    }
    resources = {
        "current_host": name,
        "hosts": list(names),
        "network_interface_name": "lo",
    }
    config = base / "input" / "config"
    (config / "hyperparameters.json").write_text(json.dumps(parameters))
    (config / "resourceconfig.json").write_text(json.dumps(resources))
    (config / "inputdataconfig.json").write_text("{}")


def _wait(process: "subprocess.Popen[bytes]", ended: Dict[int, float], number: int) -> None:
    process.wait()
    ended[number] = time.monotonic()


def _marks(base: Path) -> Mapping[str, float]:
    try:
        lines = (base / "output" / "data" / "marks").read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {name: float(value) for name, value in map(str.split, lines)}


def _watch(
    base: Path, process: "subprocess.Popen[bytes]", mark: str, seconds: float, deadline: float
) -> Optional[Entrypoint]:
    if not mark:
        return None
    while mark not in _marks(base):
        if process.poll() is not None or time.monotonic() > deadline:
            return None
        time.sleep(0.1)
    before, since = _cpu(process.pid), time.monotonic()
    time.sleep(seconds)
    cpu = (_cpu(process.pid) - before) / (time.monotonic() - since)
    memory = [own.memory_full_info() for own in _own_processes(process.pid)]
    return Entrypoint(sum(m.rss for m in memory), sum(m.pss for m in memory), cpu)


def _own_processes(pid: int) -> List[psutil.Process]:
    """Return the processes that are no role of the kvstore, and so the entrypoint's own."""
    found, level = [], [psutil.Process(pid)]
    while level:
        found += level
        children = [child for process in level for child in process.children()]
        level = [child for child in children if "DMLC_ROLE" not in child.environ()]
    return found


def _cpu(pid: int) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _own_processes(pid))


def _kill_all(directory: Path) -> None:
    """Kill what is left of a job: the peer leaves processes behind when it is killed."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            base = process.environ().get("SAGEMAKER_BASE_DIR", "")
            if base.startswith(str(directory)):
                process.kill()
                process.wait(10)
