"""Runs a job on this machine, each host as a process, without Docker or root.

Each host runs the same entrypoint as a container, configured by files in its own base directory,
which is laid out like ``/opt/ml`` on SageMaker.
"""

import argparse
import contextlib
import difflib
import functools
import glob
import json
import os
import re
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from sagemaker_mxnet_toolkit import container
from sagemaker_mxnet_toolkit.atomic_files import try_lock
from sagemaker_mxnet_toolkit.code import fetch, preparation
from sagemaker_mxnet_toolkit.failure import FailureKind, JobError, Outcome, exit_status
from sagemaker_mxnet_toolkit.log import write_all
from sagemaker_mxnet_toolkit.processes.child_report import write_line
from sagemaker_mxnet_toolkit.processes.own_process import (
    STOP_SIGNALS,
    SignalPipe,
    blocked_stop_signals,
    die_with_parent,
)
from sagemaker_mxnet_toolkit.requirements import virtual_environment
from sagemaker_mxnet_toolkit.settings.sources import decode
from sagemaker_mxnet_toolkit.settings.variables import (
    CONTROL_FD,
    FRESH,
    RANK_OUTPUT,
    RESUME,
    TERMINAL,
)
from sagemaker_mxnet_training.checkpoints import catalog
from sagemaker_mxnet_training.config import environment
from sagemaker_mxnet_training.config.directories import CHANNEL_NAME, check_writable
from sagemaker_mxnet_training.host import result, timeline, verdict_text
from sagemaker_mxnet_training.report import summary, timelines
from sagemaker_mxnet_training.report.timelines import HostTimeline

ADDRESS = "127.0.0.1"
_OPTION = re.compile(r"--?[A-Za-z_][^=\s]*")
ENTRYPOINT_PROGRAM = (
    "import sys; sys.path[:] = filter(None, sys.path); from sagemaker_mxnet_cli import main; main()"
)
"""Runs the entrypoint without the current directory, which may have a ``queue.py``, on its path."""

_NOT_RESUMED = (FailureKind.CHECKPOINT_USE, FailureKind.UNEVEN)
"""Kinds of failures after which the checkpoints must not be resumed from: they do not fit."""

_COLOURS = (36, 33, 32, 35, 34, 31)


class UsageError(JobError):
    """The command line is invalid."""


@dataclass(frozen=True)
class Run:
    """A local job.

    Attributes:
        hosts: names of the hosts, ``algo-1`` to ``algo-N``.
        script: the entry point, relative to the source directory, or a module of its package.
        source_dir: the directory of the code.
        run_dir: the parent of the hosts' base directories.
        hyperparameters: content of ``hyperparameters.json``; values are strings.
        channels: directory of each input channel.
        environment: the environment of all hosts.
        python: the interpreter of all hosts; empty for that of this program.
        resume: whether to resume from a checkpoint of an earlier run in ``run_dir``.
        processes: number of Horovod's workers on each host; 0 without Horovod.
    """

    hosts: Tuple[str, ...]
    script: str
    source_dir: str
    run_dir: str
    hyperparameters: Mapping[str, str]
    channels: Mapping[str, str]
    environment: Mapping[str, str] = field(repr=False)
    python: str = ""
    resume: bool = False
    processes: int = 0


def plan_run(options: argparse.Namespace, environ: Mapping[str, str], directory: str) -> Run:
    """Create a run from a command line.

    Args:
        options: the parsed command line.
        environ: the environment, which hosts inherit without variables of another job.
        directory: the current directory, to which paths are relative.

    Raises:
        UsageError: options or paths are invalid; the message has all faults.
    """
    faults: List[str] = []
    for option, value in (("--run-dir", options.run_dir), ("--source-dir", options.source_dir)):
        if value == "":
            faults.append(f"{option}: expected a directory, got an empty value")
    count = _count("--hosts", options.hosts, faults)
    processes = 0
    if options.processes_per_host is not None:
        processes = _count("--processes-per-host", options.processes_per_host, faults)
        if options.parameter_server:
            faults.append("--processes-per-host, --parameter-server: expected only one of them")
    source_dir, script = _source(options, directory, faults)
    channels = _channels(options, directory, faults)
    hyperparameters = _pairs("--hyperparameter", options.hyperparameter, faults)
    for name, value in _arguments(options.arguments, faults).items():
        if name in hyperparameters:
            faults.append(f"--hyperparameter {name}: duplicate")
        hyperparameters[name] = value
    variables = _pairs("--env", options.env, faults)
    run_dir = _run_dir(options, directory, script, faults)
    names = tuple(f"algo-{number}" for number in range(1, count + 1))
    if options.resume:
        _check_resume(options, run_dir, names[0], faults)
    if faults:
        raise UsageError("; ".join(dict.fromkeys(faults)))
    server = options.parameter_server
    if server is None:
        server = count > 1 and not processes
    hyperparameters["sagemaker_program"] = script
    hyperparameters["sagemaker_submit_directory"] = source_dir
    hyperparameters["sagemaker_parameter_server_enabled"] = json.dumps(server)
    if processes:
        hyperparameters["sagemaker_mpi_enabled"] = "true"
        hyperparameters["sagemaker_mpi_num_of_processes_per_host"] = str(processes)
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
        resume=options.resume,
        processes=processes,
    )


def _check_resume(options: argparse.Namespace, run_dir: str, host: str, faults: List[str]) -> None:
    """Check that there is a checkpoint to resume from. Without --resume a job starts afresh."""
    entry, damaged = catalog.newest_whole(os.path.join(run_dir, host, "checkpoints"))
    if entry is not None:
        return
    text = "expected --run-dir with the directory of an earlier run"
    if damaged:
        reason = f"{damaged[0].name}: {damaged[0].reason}"
        text = f"{run_dir} has no whole checkpoint ({reason}); {text}"
        text += ", or no --resume, to start afresh"
    elif fetch.holds_run(run_dir):
        text = (
            f"{run_dir} has no checkpoints: the earlier run ended before its first one; "
            "expected no --resume, to start afresh"
        )
    elif options.run_dir is not None:
        text = f"{run_dir} has no checkpoints; {text}"
    faults.append(f"--resume: {text}")


def _checkpoints(run_dir: str, host: str) -> List[catalog.Entry]:
    return catalog.listing(os.path.join(run_dir, host, "checkpoints"))


def _count(option: str, text: str, faults: List[str]) -> int:
    if text.isdecimal() and 1 <= int(text) <= 64:
        return int(text)
    faults.append(f"{option} {text}: expected a number from 1 to 64")
    return 1


def _source(options: argparse.Namespace, directory: str, faults: List[str]) -> Tuple[str, str]:
    """Return the source directory, and the script's path in it or the name of a module."""
    script = _absolute(directory, options.script)
    if options.source_dir is None:
        source_dir = os.path.dirname(script)
    else:
        source_dir = _absolute(directory, options.source_dir)
        if not os.path.isdir(source_dir):
            faults.append(f"--source-dir {options.source_dir}: no such directory")
        inside = os.path.join(source_dir, options.script)
        if os.path.exists(inside) or not os.path.exists(script):
            script = inside
    if not os.path.exists(script) and _may_be_module(source_dir, options.script):
        return os.path.realpath(source_dir), options.script
    if not os.path.exists(script):
        closest = difflib.get_close_matches(os.path.basename(script), _files_in(source_dir), n=1)
        suggestion = f" (did you mean {closest[0]}?)" if closest else ""
        faults.append(f"{options.script}: no such file in {source_dir}{suggestion}")
    elif not os.path.isfile(script):
        faults.append(f"{options.script}: expected a file, not a directory")
    relative = os.path.relpath(os.path.realpath(script), os.path.realpath(source_dir))
    if relative.startswith(os.pardir):
        target = f" (it is a link to {os.path.realpath(script)})" if os.path.islink(script) else ""
        faults.append(
            f"{options.script}: outside the source directory {source_dir}{target}; expected a "
            "script in it: set --source-dir to a directory that has the script"
        )
    return os.path.realpath(source_dir), relative


def _may_be_module(source_dir: str, name: str) -> bool:
    """Return whether a name without a file may be a module of a package, such as ``pkg.main``."""
    parts = name.split(".")
    is_name = parts[-1] != "py" and all(map(str.isidentifier, parts))
    return is_name and preparation.is_package(source_dir, name)


def _absolute(directory: str, path: str) -> str:
    return os.path.normpath(os.path.join(directory, path))


def _files_in(directory: str) -> List[str]:
    with contextlib.suppress(OSError):
        return [each.name for each in os.scandir(directory) if each.is_file()]
    return []


def _channels(options: argparse.Namespace, directory: str, faults: List[str]) -> Dict[str, str]:
    channels = _pairs("--channel", options.channel, faults, "NAME=DIRECTORY")
    for name, path in channels.items():
        channels[name] = _absolute(directory, path)
        if not path:  # for example an unset variable of a shell
            faults.append(f"--channel {name}=: expected NAME=DIRECTORY")
        elif not os.path.isdir(channels[name]):
            is_file = os.path.exists(channels[name])
            fault = "expected a directory, not a file" if is_file else "no such directory"
            faults.append(f"--channel {name}={path}: {fault}")
        if not CHANNEL_NAME.match(name):
            faults.append(f"--channel {name}: expected a name of letters, digits, '.', '-' and '_'")
    return channels


def _run_dir(options: argparse.Namespace, directory: str, script: str, faults: List[str]) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}"
    stem = os.path.splitext(os.path.basename(script))[0]
    run_dir = _absolute(directory, options.run_dir or os.path.join("runs", f"{stem}-{stamp}"))
    problem = check_writable(run_dir)
    if problem is not None:
        faults.append(f"--run-dir: {problem}")
    elif os.path.isdir(run_dir) and os.listdir(run_dir) and not fetch.holds_run(run_dir):
        faults.append(
            f"--run-dir {run_dir}: this directory contains other files; "
            "expected a new or empty directory, or that of an earlier run"
        )
    return run_dir


def _pairs(
    option: str, words: Iterable[str], faults: List[str], form: str = "NAME=VALUE"
) -> Dict[str, str]:
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            # Only the name is shown, since the value may be a secret.
            faults.append(f"{option} {name}: expected {form}")
            continue
        if name in pairs:
            faults.append(f"{option} {name}: duplicate")
        pairs[name] = value
    return pairs


def _arguments(arguments: Sequence[str], faults: List[str]) -> Dict[str, str]:
    """Return the script's arguments as hyperparameters that are passed as the same arguments."""
    found: Dict[str, str] = {}
    words, last = list(arguments), "the script's arguments"
    while words:
        option, equals, value = words.pop(0).partition("=")
        if not _OPTION.fullmatch(option):
            faults.append(
                f"{last}: expected --NAME VALUE, such as --epochs 5, since arguments are passed as "
                "hyperparameters"
            )
            continue
        name, last = option.lstrip("-"), option
        form = environment.arguments({name: ""})[0]
        if not equals and words and not _OPTION.match(words[0]):
            value = words.pop(0)
        elif not equals:
            faults.append(f"{option}: expected a value, since a hyperparameter needs one")
        if option != form:
            faults.append(
                f"{option}: this hyperparameter would be passed to the script as {form}; write "
                f"{form}, and let the script accept it"
            )
        elif name in found:
            faults.append(f"{option}: duplicate")
        as_is = environment.arguments({name: decode(value)})[1] == value
        found[name] = value if as_is else json.dumps(value)
    return found


def run(job: Run) -> int:
    """Run a job, forward its output, and return its exit status.

    Raises:
        UsageError: the run directory cannot be created, or another job is using it.
    """
    with _locked(job.run_dir) as lock:
        return _run(job, lock)


@contextlib.contextmanager
def _locked(run_dir: str) -> Iterator[int]:
    """Let one job at a time use a run directory; yield the descriptor that holds the lock.

    Raises:
        UsageError: the directory cannot be created, or another job uses it.
    """
    try:
        os.makedirs(run_dir, exist_ok=True)
        descriptor = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _not_created(run_dir, error) from error
    try:
        if not try_lock(descriptor):
            raise UsageError(
                f"--run-dir {run_dir}: another job is using this directory; wait for its end, or "
                "use another directory"
            )
        yield descriptor
    finally:
        os.close(descriptor)


def _not_created(run_dir: str, error: OSError) -> UsageError:
    return UsageError(
        f"--run-dir {run_dir}: cannot create {error.filename or 'its files'}: "
        f"{error.strerror or error}; expected a new directory, or that of an earlier run, with "
        "enough space"
    )


def _run(job: Run, lock: int) -> int:
    venv = os.path.join(job.run_dir, "venv")
    try:
        # Timelines of an earlier run, which may have had more hosts.
        for path in glob.glob(
            timeline.path(os.path.join(glob.escape(job.run_dir), "*/output/data"), "*")
        ):
            os.unlink(path)
        for host in job.hosts:
            _create_base_dir(os.path.join(job.run_dir, host), job, host)
        if preparation.install_needed(job.source_dir, job.script):
            job = _with_environment(job, venv)
    except OSError as error:
        raise _not_created(job.run_dir, error) from error
    old = _checkpoints(job.run_dir, job.hosts[0])
    if old and job.environment.get(RESUME) == FRESH:
        write_line(
            f"starting afresh: {old[-1].name} of an earlier run in {job.run_dir} is ignored; "
            "use --resume to resume from it"
        )
    try:
        return _LocalJob(job, lock).run()
    finally:
        shutil.rmtree(venv, ignore_errors=True)


def _with_environment(job: Run, directory: str) -> Run:
    """Create a virtual environment for the job's requirements, and set it for its hosts."""
    python = virtual_environment.create_environment(directory)
    write_line(virtual_environment.installation_notice("run", directory))
    return replace(job, python=python, environment={**job.environment, "VIRTUAL_ENV": directory})


@dataclass(eq=False)
class _Stream:
    """The output of an entrypoint, or of one of its workers.

    Attributes:
        fd: the read end of a pipe.
        prefix: prefix of its lines.
        sink: where they are written: 1 for stdout, 2 for stderr.
        partial: an incomplete line.
    """

    fd: int
    prefix: bytes
    sink: int
    partial: bytes = b""


class _LocalJob:
    """Starts the entrypoints, forwards their output and signals to them, and prints a summary.

    The entrypoints inherit the lock of the run directory, so that no other job can use it before
    they have ended, even if this process was killed.
    """

    def __init__(self, job: Run, lock: int) -> None:
        self._job = job
        self._lock = lock
        self._processes: List[subprocess.Popen[bytes]] = []
        self._open: Set[_Stream] = set()
        self._selector = selectors.DefaultSelector()
        self._started = time.monotonic()
        self._signals: List[int] = []
        self._before = {name: _files(self._directory(name, "model")) for name in job.hosts}
        self._old_checkpoints = _checkpoints(job.run_dir, job.hosts[0])

    def run(self) -> int:
        with SignalPipe(STOP_SIGNALS) as signals:
            self._selector.register(signals, selectors.EVENT_READ)
            try:
                self._start()
                while self._open:
                    for key, _ in self._selector.select():
                        if key.fileobj is signals:
                            for received in signals.read():
                                self._signal(received)
                        else:
                            self._forward(key.data)
                return self._sum_up([process.wait() for process in self._processes])
            finally:
                for process in self._processes:
                    process.kill()

    def _start(self) -> None:
        # The socket is created here and inherited, so that two runs at once cannot connect.
        listener = socket.create_server((ADDRESS, 0), backlog=128)
        key = secrets.token_hex(16)
        stop_with_parent = functools.partial(die_with_parent, os.getpid(), signal.SIGTERM)
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
            share = container.count_cpus() // len(self._job.hosts)
            environment.setdefault("SM_NUM_CPUS", str(max(1, share)))
            if len(self._job.hosts) == 1 and sys.stdin.isatty():
                environment[TERMINAL] = os.ttyname(0)
            inherited = self._rank_pipes(name)
            if inherited:
                environment[RANK_OUTPUT] = ",".join(map(str, inherited))
            if name == self._job.hosts[0]:
                environment[CONTROL_FD] = str(listener.fileno())
                inherited.append(listener.fileno())
            # Signals are delivered when the entrypoint can stop the job.
            with blocked_stop_signals():
                process = subprocess.Popen(
                    [self._job.python or sys.executable, "-c", ENTRYPOINT_PROGRAM, "train"],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=[*inherited, self._lock],
                    start_new_session=True,
                    # Safe, since this program has only one thread.
                    preexec_fn=stop_with_parent,  # noqa: PLW1509
                )
            self._processes.append(process)
            for sink, pipe in ((1, process.stdout), (2, process.stderr)):
                assert pipe is not None
                self._watch(_Stream(os.dup(pipe.fileno()), self._prefix(name), sink))
                pipe.close()
            for fd in inherited:
                if fd != listener.fileno():
                    os.close(fd)
        listener.close()

    def _rank_pipes(self, name: str) -> List[int]:
        """Return the write ends of two pipes for each of Horovod's workers on a host."""
        ends: List[int] = []
        total = len(self._job.hosts) * self._job.processes
        first = self._job.hosts.index(name) * self._job.processes
        for rank in range(first, first + self._job.processes if total > 1 else first):
            for sink in (1, 2):
                read_end, write_end = os.pipe()
                self._watch(_Stream(read_end, self._prefix(name, f" rank {rank}"), sink))
                ends.append(write_end)
        return ends

    def _watch(self, stream: _Stream) -> None:
        self._open.add(stream)
        self._selector.register(stream.fd, selectors.EVENT_READ, stream)

    def _prefix(self, name: str, process: str = "") -> bytes:
        text = f"{name}{process} | "
        if sys.stdout.isatty():
            colour = _COLOURS[self._job.hosts.index(name) % len(_COLOURS)]
            text = f"\x1b[{colour}m{text}\x1b[0m"
        return text.encode()

    def _forward(self, stream: _Stream) -> None:
        """Write complete lines of a process, each with its prefix."""
        block = os.read(stream.fd, 65536)
        # A progress bar ends its states with a carriage return; each becomes a line.
        text = stream.partial + block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, stream.partial = text.split(b"\n")
        if not block:
            if stream.partial:
                lines.append(stream.partial)
            self._open.discard(stream)
            self._selector.unregister(stream.fd)
            os.close(stream.fd)
        write_all(stream.sink, b"".join(stream.prefix + line + b"\n" for line in lines))

    def _signal(self, number: int) -> None:
        self._signals.append(number)
        if len(self._signals) == 2:
            # A second signal makes the entrypoint kill everything. It must be another one, since
            # the kernel merges two pending signals with the same number.
            number = signal.SIGTERM if self._signals[0] != signal.SIGTERM else signal.SIGINT
        elif len(self._signals) > 2:
            number = signal.SIGKILL  # the entrypoint may be frozen
        for process in self._processes:
            process.send_signal(number)

    def _sum_up(self, returncodes: List[int]) -> int:
        statuses = [exit_status(code) for code in returncodes]
        # The host on which the script failed has the script's status; the others have 1.
        own = [status for status in statuses if status not in (0, 1)]
        status = own[0] if own else max(statuses)
        seconds = time.monotonic() - self._started
        hosts = self._timelines()
        outcome = self._outcome(hosts, status)
        if outcome is Outcome.STOP:
            # A shell's `&&` must not continue with an incomplete model.
            status = status or 128 + (self._signals[0] if self._signals else signal.SIGTERM)
        elif outcome is Outcome.FAILURE:
            status = status or 1
        restarts = max((host.restarts for host in hosts), default=0)
        headline = f"{verdict_text.headline(outcome, seconds, restarts)} (exit status {status})"
        facts = []
        failure = next((host.failure for host in hosts if host.failure is not None), None)
        if outcome is Outcome.FAILURE:
            cause = self._cause()
            facts.append(("cause", cause or self._unexplained(statuses)))
            if failure is None:  # without a timeline
                question = f"is there free space in {self._job.run_dir}?"
                if cause is not None:
                    question = "if something killed the entrypoint, the kernel's log may have it"
                facts.append(("next", f"read the last lines above; {question}"))
        if failure is not None:
            advice = verdict_text.advice(failure, failure.host, self._job.source_dir)
            facts.append(("next", advice))
        checkpoints = _checkpoints(self._job.run_dir, self._job.hosts[0])
        new = self._job.resume or checkpoints[-1:] != self._old_checkpoints[-1:]
        fits = failure is None or failure.kind not in _NOT_RESUMED
        if outcome is not Outcome.SUCCESS and checkpoints and new and fits:
            command = f"the same command with --run-dir {self._job.run_dir} --resume"
            facts.append(("resume", command))
        attempts = summary.attempts(timelines.join(hosts)) if restarts else []
        outputs = [("phases", summary.longest_phases(hosts))]
        outputs += [
            ("model", self._model(name))
            for name in self._job.hosts
            if name == self._job.hosts[0] or result.has_model(self._directory(name, "model"))
        ]
        outputs.append(("run", self._job.run_dir))
        lines = summary.lines(headline, [*facts, *attempts, *outputs])
        write_all(1, "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape"))
        return status

    def _outcome(self, hosts: List[HostTimeline], status: int) -> Outcome:
        """Return how the job ended, as the hosts recorded it."""
        success = (self._directory(name, "output", "success") for name in self._job.hosts)
        if status == 0 and all(map(os.path.exists, success)):
            return Outcome.SUCCESS
        recorded = {host.outcome for host in hosts}
        if Outcome.FAILURE in recorded:
            return Outcome.FAILURE
        if Outcome.STOP in recorded or (self._signals and not self._cause()):
            return Outcome.STOP
        return Outcome.FAILURE

    def _unexplained(self, statuses: List[int]) -> str:
        """Return the cause of a failure of which no host could write the cause."""
        name, status = max(zip(self._job.hosts, statuses), key=lambda pair: pair[1])
        return f"{name}: entrypoint ended with exit status {status} and wrote no result"

    def _model(self, host: str) -> str:
        """Return a host's model directory, and what this run wrote into it."""
        directory = self._directory(host, "model")
        after, before = _files(directory), self._before[host]
        own = {name.split(os.sep)[0] for name in after if after[name] != before.get(name)}
        old = sorted({name.split(os.sep)[0] for name in after} - own)
        words = ", ".join(sorted(own)) or "empty"
        if old:
            words = (
                f"{', '.join(sorted(own)) or 'nothing new'}; of an earlier run: {', '.join(old)}"
            )
        return f"{directory} ({words})"

    def _directory(self, host: str, *names: str) -> str:
        return os.path.join(self._job.run_dir, host, *names)

    def _cause(self) -> Optional[str]:
        for name in self._job.hosts:
            path = result.failure_path(self._directory(name, "output"))
            with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as f:
                return f.readline().strip() or "(the failure file is empty)"
        return None

    def _timelines(self) -> List[HostTimeline]:
        """Return the timelines that hosts have written."""
        found = []
        for name in self._job.hosts:
            with contextlib.suppress(timelines.ReportError):
                found.append(timelines.read(_timeline_path(self._job, name)))
        return found


def _files(directory: str) -> Dict[str, Tuple[int, int]]:
    """Return the files in a directory, each with its inode and change time."""
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                about = os.lstat(path)
                found[os.path.relpath(path, directory)] = (about.st_ino, about.st_ctime_ns)
    return found


def _timeline_path(job: Run, host: str) -> str:
    return timeline.path(os.path.join(job.run_dir, host, "output", "data"), host)


def _create_base_dir(base_dir: str, job: Run, host: str) -> None:
    """Create a host's directories and configuration files, like SageMaker."""
    for name in ("input/config", "input/data", "model", "output/data", "checkpoints"):
        os.makedirs(os.path.join(base_dir, name), exist_ok=True)
    for channel, directory in job.channels.items():
        link = os.path.join(base_dir, "input", "data", channel)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)
        os.symlink(os.path.realpath(directory), link)
    result.clear(os.path.join(base_dir, "output"))
    _write_config(base_dir, "hyperparameters", job.hyperparameters)
    _write_config(base_dir, "resourceconfig", {"current_host": host, "hosts": job.hosts})
    channels = {name: {"TrainingInputMode": "File"} for name in job.channels}
    _write_config(base_dir, "inputdataconfig", channels)


def _write_config(base_dir: str, name: str, content: Any) -> None:
    path = os.path.join(base_dir, "input", "config", f"{name}.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
