"""A job on this machine: every host a process with a directory of its own, no Docker, no root.

Each host runs the very entrypoint that a container runs, configured by files below its own base
directory, as ``/opt/ml`` is laid out on SageMaker.
"""

import argparse
import contextlib
import ctypes
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from sagemaker_mxnet_toolkit.container import hardware
from sagemaker_mxnet_toolkit.errors import JobError
from sagemaker_mxnet_toolkit.failure import Outcome, exit_status
from sagemaker_mxnet_toolkit.log import write_all
from sagemaker_mxnet_toolkit.processes.signals import STOP_SIGNALS, SignalPipe
from sagemaker_mxnet_toolkit.settings.variables import FRESH, RESUME
from sagemaker_mxnet_training.checkpoints import catalog
from sagemaker_mxnet_training.config import configuration
from sagemaker_mxnet_training.host import result, timeline, verdict_text
from sagemaker_mxnet_training.host.phase import HostPhase

if TYPE_CHECKING:
    from sagemaker_mxnet_training.report.timelines import HostTimeline

ADDRESS = "127.0.0.1"
_PR_SET_PDEATHSIG = 1
_COLOURS = (36, 33, 32, 35, 34, 31)


class UsageError(JobError):
    """The command line is wrong."""


@dataclass(frozen=True)
class Run:
    """A local job: plain data, complete before anything is started.

    Attributes:
        hosts: names of the hosts, ``algo-1`` to ``algo-N``.
        script: the entry point, relative to the source directory.
        source_dir: the code that every host gets.
        run_dir: each host's base directory is one directory in it.
        hyperparameters: what ``hyperparameters.json`` will hold; values are texts.
        channels: name and directory of each input channel.
        environment: the environment of every host.
    """

    hosts: Tuple[str, ...]
    script: str
    source_dir: str
    run_dir: str
    hyperparameters: Mapping[str, str]
    channels: Mapping[str, str]
    environment: Mapping[str, str] = field(repr=False)


def plan_run(options: argparse.Namespace, environ: Mapping[str, str], directory: str) -> Run:
    """Turn a command line into a run.

    Args:
        options: what ``cli`` parsed.
        environ: the environment; hosts get it, without what belongs to another job.
        directory: the current directory, to which paths are relative.

    Raises:
        UsageError: an option or a path is wrong; all faults are in its text.
    """
    faults: List[str] = []
    count = _count(options.hosts, faults)
    source_dir, script = _source(options, directory, faults)
    channels = _pairs("--channel", options.channel, faults)
    for name, path in channels.items():
        channels[name] = os.path.join(directory, path)
        if not os.path.isdir(channels[name]):
            faults.append(f"--channel {name}={path}: there is no such directory")
        if name and not configuration.CHANNEL_NAME.match(name):
            faults.append(f"--channel {name}: expected a name of letters, digits, '.', '-' and '_'")
    hyperparameters = _pairs("--hyperparameter", options.hyperparameter, faults)
    variables = _pairs("--env", options.env, faults)
    stamp = time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}"
    stem = os.path.splitext(os.path.basename(script))[0]
    run_dir = os.path.join(directory, options.run_dir or os.path.join("runs", f"{stem}-{stamp}"))
    trouble = configuration.check_writable(run_dir)
    if trouble is not None:
        faults.append(f"--run-dir: {trouble}")
    names = tuple(f"algo-{number}" for number in range(1, count + 1))
    if options.resume and not _checkpoints(run_dir, names[0]):
        place = (
            "of an earlier run" if options.run_dir is None else f"with checkpoints, not {run_dir}"
        )
        faults.append(f"--resume: expected --run-dir, the directory {place}")
    if faults:
        raise UsageError("; ".join(faults))
    server = count > 1 if options.parameter_server is None else options.parameter_server
    hyperparameters["sagemaker_program"] = script
    hyperparameters["sagemaker_submit_directory"] = source_dir
    hyperparameters["sagemaker_parameter_server_enabled"] = json.dumps(server)
    kept = {k: v for k, v in environ.items() if not k.startswith(("SM_", "DMLC_", "SAGEMAKER_"))}
    own = {k: v for k, v in environ.items() if k.startswith("SAGEMAKER_MXNET_")}
    if not options.resume:
        own.setdefault(RESUME, FRESH)
    return Run(
        hosts=names,
        script=script,
        source_dir=source_dir,
        run_dir=run_dir,
        hyperparameters=hyperparameters,
        channels=channels,
        environment={**kept, **own, **variables},
    )


def _checkpoints(run_dir: str, host: str) -> List[catalog.Entry]:
    return catalog.listing(os.path.join(run_dir, host, "checkpoints"))


def _count(text: str, faults: List[str]) -> int:
    if text.isdecimal() and 1 <= int(text) <= 64:
        return int(text)
    faults.append(f"--hosts {text}: expected a number from 1 to 64")
    return 1


def _source(options: argparse.Namespace, directory: str, faults: List[str]) -> Tuple[str, str]:
    """Return the source directory and the script's path in it."""
    script = os.path.join(directory, options.script)
    if options.source_dir is None:
        source_dir = os.path.dirname(script)
    else:
        source_dir = os.path.join(directory, options.source_dir)
        if not os.path.isdir(source_dir):
            faults.append(f"--source-dir {options.source_dir}: there is no such directory")
        inside = os.path.join(source_dir, options.script)
        if os.path.exists(inside) or not os.path.exists(script):
            script = inside
    if not os.path.exists(script):
        faults.append(f"{options.script}: there is no such file in {source_dir}")
    elif not os.path.isfile(script):
        faults.append(f"{options.script}: expected a file, this is a directory")
    relative = os.path.relpath(os.path.realpath(script), os.path.realpath(source_dir))
    if relative.startswith(os.pardir):
        faults.append(f"{options.script}: it lies outside --source-dir {options.source_dir}")
    return os.path.realpath(source_dir), relative


def _pairs(option: str, words: Iterable[str], faults: List[str]) -> Dict[str, str]:
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            # What stands there may be a secret: only its name is repeated.
            faults.append(f"{option} {name}: expected NAME=VALUE")
        elif name in pairs:
            faults.append(f"{option} {name}: given twice")
        pairs[name] = value
    return pairs


def run(job: Run) -> int:
    """Run a job to its end, with its output on ours; return its exit status.

    Raises:
        UsageError: the run directory holds what is in the way; nothing has been started.
    """
    try:
        for host in job.hosts:
            _lay_out(os.path.join(job.run_dir, host), job, host)
    except OSError as error:
        raise UsageError(
            f"--run-dir {job.run_dir}: cannot be laid out: {error}; "
            "expected a new directory, or that of an earlier run, with enough space"
        ) from error
    return _LocalJob(job).run()


class _Host:
    """One entrypoint and the lines it prints."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", prefix: bytes) -> None:
        self.name = name
        self.process = process
        self.prefix = prefix
        self.partial: Dict[int, bytes] = {}


class _LocalJob:
    """Starts the entrypoints, passes their lines on and signals to them, and sums up."""

    def __init__(self, job: Run) -> None:
        self._job = job
        self._hosts: List[_Host] = []
        self._selector = selectors.DefaultSelector()
        self._started = time.monotonic()
        self._signals: List[int] = []

    def run(self) -> int:
        with SignalPipe(STOP_SIGNALS) as signals:
            self._selector.register(signals, selectors.EVENT_READ)
            try:
                self._start()
                while any(host.partial for host in self._hosts):
                    for key, _ in self._selector.select():
                        if key.fileobj is signals:
                            for received in signals.read():
                                self._signal(received)
                        else:
                            self._pass_on(key.data, key.fd)
                return self._sum_up([host.process.wait() for host in self._hosts])
            finally:
                for host in self._hosts:
                    host.process.kill()

    def _start(self) -> None:
        # The socket is made here and inherited, so that two runs at once cannot meet.
        listener = socket.create_server((ADDRESS, 0), backlog=128)
        key = secrets.token_hex(16)
        for name in self._job.hosts:
            base_dir = os.path.join(self._job.run_dir, name)
            environment = {
                **self._job.environment,
                "SAGEMAKER_BASE_DIR": base_dir,
                "SM_CURRENT_HOST": name,
                "SAGEMAKER_MXNET_JOB_KEY": key,
                "SAGEMAKER_MXNET_CONTROL_PORT": str(listener.getsockname()[1]),
                "SAGEMAKER_MXNET_HOST_ADDRESSES": json.dumps(
                    dict.fromkeys(self._job.hosts, ADDRESS)
                ),
            }
            environment.setdefault("SAGEMAKER_MXNET_PS_PORT", "0")
            # The hosts share this machine.
            share = hardware.count_cpus() // len(self._job.hosts)
            environment.setdefault("SM_NUM_CPUS", str(max(1, share)))
            leads = name == self._job.hosts[0]
            if leads:
                environment["SAGEMAKER_MXNET_CONTROL_FD"] = str(listener.fileno())
            process = subprocess.Popen(
                [sys.executable, "-m", "sagemaker_mxnet_training", "train"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(listener.fileno(),) if leads else (),
                start_new_session=True,
                # Safe here: this program has no second thread.
                preexec_fn=_end_with_parent,  # noqa: PLW1509
            )
            self._watch(_Host(name, process, self._prefix(name)))
        listener.close()

    def _watch(self, host: _Host) -> None:
        self._hosts.append(host)
        for stream in (host.process.stdout, host.process.stderr):
            assert stream is not None
            host.partial[stream.fileno()] = b""
            self._selector.register(stream, selectors.EVENT_READ, host)

    def _prefix(self, name: str) -> bytes:
        text = f"{name} | "
        if sys.stdout.isatty():
            colour = _COLOURS[self._job.hosts.index(name) % len(_COLOURS)]
            text = f"\x1b[{colour}m{text}\x1b[0m"
        return text.encode()

    def _pass_on(self, host: _Host, fd: int) -> None:
        """Write the whole lines that a host printed, each with the host's name before it."""
        assert host.process.stdout is not None and host.process.stderr is not None
        stream = host.process.stdout if fd == host.process.stdout.fileno() else host.process.stderr
        block = os.read(fd, 65536)
        # A progress bar's states end with a carriage return; each becomes a line here.
        text = host.partial[fd] + block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        host.partial[fd] = rest
        if not block:
            if rest:
                lines.append(rest)
            del host.partial[fd]
            self._selector.unregister(stream)
        sink = 1 if stream is host.process.stdout else 2
        write_all(sink, b"".join(host.prefix + line + b"\n" for line in lines))

    def _signal(self, number: int) -> None:
        self._signals.append(number)
        if len(self._signals) == 2:
            # The entrypoint that is asked twice kills everything. One that had no time yet for the
            # first signal would see a second of the same kind as one: the kernel merges them.
            number = signal.SIGTERM if self._signals[0] != signal.SIGTERM else signal.SIGINT
        elif len(self._signals) > 2:
            number = signal.SIGKILL  # for one that is frozen
        for host in self._hosts:
            host.process.send_signal(number)

    def _sum_up(self, returncodes: List[int]) -> int:
        statuses = [exit_status(code) for code in returncodes]
        # The host on which the script failed has the script's own status, the others have 1.
        own = [status for status in statuses if status not in (0, 1)]
        status = own[0] if own else max(statuses)
        seconds = time.monotonic() - self._started
        from sagemaker_mxnet_training.report import summary, timelines  # noqa: PLC0415

        hosts = self._timelines()
        cause = self._cause()
        outcome = Outcome.SUCCESS if status == 0 and not self._signals else Outcome.STOP
        if cause:
            outcome = Outcome.FAILURE
        restarts = max((host.restarts for host in hosts), default=0)
        lines = [f"{verdict_text.headline(outcome, seconds, restarts)} (exit status {status})"]
        if cause:
            lines.append(f"  cause   {cause}")
        failure = next((host.failure for host in hosts if host.failure is not None), None)
        if failure is not None:
            advice = verdict_text.advice(failure, failure.host, self._job.source_dir)
            lines.append(f"  next    {advice}")
        if outcome is not Outcome.SUCCESS and _checkpoints(self._job.run_dir, self._job.hosts[0]):
            lines.append(f"  resume  the same command with --run-dir {self._job.run_dir} --resume")
        if restarts:
            lines += [f"  {text}" for text in summary.attempts(timelines.join(hosts))]
        lines.append(f"  phases  {_phases(hosts)}")
        model = os.path.join(self._job.run_dir, self._job.hosts[0], "model")
        files = sorted(os.listdir(model)) if os.path.isdir(model) else []
        lines.append(f"  model   {model} ({', '.join(files) or 'empty'})")
        lines.append(f"  run     {self._job.run_dir}")
        write_all(1, "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape"))
        return status

    def _cause(self) -> Optional[str]:
        for name in self._job.hosts:
            path = result.failure_path(os.path.join(self._job.run_dir, name, "output"))
            with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as f:
                return f.readline().strip() or "(the failure file is empty)"
        return None

    def _timelines(self) -> "List[HostTimeline]":
        """Return the timelines of the hosts that have left one."""
        from sagemaker_mxnet_training.report import timelines  # noqa: PLC0415

        found = []
        for name in self._job.hosts:
            with contextlib.suppress(timelines.ReportError):
                found.append(timelines.read(_timeline_path(self._job, name)))
        return found


def _timeline_path(job: Run, host: str) -> str:
    return timeline.path(os.path.join(job.run_dir, host, "output", "data"), host)


def _phases(hosts: "Sequence[HostTimeline]") -> str:
    """Return the phases with the seconds that they took on the slowest host."""
    longest: Dict[str, float] = {}
    for host in hosts:
        for phase in host.phases:
            longest[phase.name] = max(phase.end - phase.start, longest.get(phase.name, 0.0))
    # Shown in tenths of a second: what took less would be 0.0.
    known = [
        f"{phase.value} {longest[phase.value]:.1f} s"
        for phase in HostPhase
        if phase is not HostPhase.END and longest.get(phase.value, 0.0) > 0.05
    ]
    return ", ".join(known) or "unknown"


def _lay_out(base_dir: str, job: Run, host: str) -> None:
    """Make a host's directories and configuration files, as SageMaker makes them."""
    for name in ("input/config", "input/data", "model", "output/data", "checkpoints"):
        os.makedirs(os.path.join(base_dir, name), exist_ok=True)
    for channel, directory in job.channels.items():
        link = os.path.join(base_dir, "input", "data", channel)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)
        os.symlink(os.path.realpath(directory), link)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_timeline_path(job, host))  # an earlier run's: this one may be killed
    _write_config(base_dir, "hyperparameters", job.hyperparameters)
    _write_config(base_dir, "resourceconfig", {"current_host": host, "hosts": job.hosts})
    channels = {name: {"TrainingInputMode": "File"} for name in job.channels}
    _write_config(base_dir, "inputdataconfig", channels)


def _write_config(base_dir: str, name: str, content: Any) -> None:
    path = os.path.join(base_dir, "input", "config", f"{name}.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)


def _end_with_parent() -> None:
    """Let an entrypoint be asked to stop when the program that started it dies (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
