"""Reads the timelines of a job's hosts, which ``host.timeline`` writes.

They may come from other machines, so they are validated.
"""

import glob
import json
import math
import os
import re
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from sagemaker_mxnet_toolkit.failure import Failure, JobError, Outcome
from sagemaker_mxnet_toolkit.settings.sources import without_waiting
from sagemaker_mxnet_training.host.timeline import CPU, MEMORY, PROGRAM

SIZE_LIMIT = 64 * 2**20
"""Maximum size of a file in bytes, ten times that of the longest job."""

_PLACES = ("*/output/data", "output/data", ".")


class ReportError(JobError):
    """Timelines are missing or cannot be read. The message names the file."""


@dataclass(frozen=True)
class PhaseSpan:
    """A phase of the job on one host. Times are wall clock, in seconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Process:
    """One process and its usage.

    Attributes:
        pid: its id on its host.
        name: unique on its host; ``worker #2`` is the worker of the second attempt.
        role: a value of ``Role``.
        start, end: wall clock, seconds.
        status: its exit status, if it had ended.
        cpu: times (wall clock, seconds) and percent of a core until the next time.
        memory: times and resident memory in 10**6 bytes.
    """

    pid: int
    name: str
    role: str
    start: float
    end: float
    status: Optional[int]
    cpu: Tuple[Tuple[float, float], ...]
    memory: Tuple[Tuple[float, float], ...]

    @property
    def kind(self) -> str:
        """Its name without the number of the attempt."""
        return self.name.split(" #")[0]


@dataclass(frozen=True)
class Mark:
    """An instant.

    Attributes:
        kind: ``signal``, ``failure``, ``stop``, ``checkpoint``, ``restart``, ``resume`` or
            ``verdict``.
        name: its name, such as ``SIGTERM``.
        when: wall clock, seconds.
        pid: the process that it belongs to; ``None`` for the host.
        text: additional text; may be empty.
        role: the role that failed, for a failure.
    """

    kind: str
    name: str
    when: float
    pid: Optional[int]
    text: str
    role: str = ""


@dataclass(frozen=True)
class HostTimeline:
    """The timeline of one host.

    Attributes:
        host: its name.
        hosts: the names of all hosts of the job.
        phases: in chronological order.
        processes: in the order of their start.
        marks: in the order of the file.
        outcome: how the job ended.
        failure: the cause, for ``Outcome.FAILURE``.
        restarts: number of restarts of the job.
    """

    host: str
    hosts: Tuple[str, ...]
    phases: Tuple[PhaseSpan, ...]
    processes: Tuple[Process, ...]
    marks: Tuple[Mark, ...]
    outcome: Outcome
    failure: Optional[Failure]
    restarts: int = 0


@dataclass(frozen=True)
class JobTimeline:
    """The timelines of all hosts of a job.

    Attributes:
        hosts: hosts with a timeline, in order.
        missing: names of the other hosts.
        start, end: start and end of the job (wall clock, seconds).
        outcome: how it ended.
        failure: the cause, for ``Outcome.FAILURE``.
        moment: when it failed, or when it was asked to stop (wall clock, seconds).
        restarts: number of restarts.
    """

    hosts: Tuple[HostTimeline, ...]
    missing: Tuple[str, ...]
    start: float
    end: float
    outcome: Outcome
    failure: Optional[Failure]
    moment: Optional[float]
    restarts: int = 0


def find(directory: str) -> List[str]:
    """Return the paths of a job's timelines.

    Args:
        directory: the run directory of ``local``, a host's directory in it, or one with timelines.

    Raises:
        ReportError: there are no timelines.
    """
    if not os.path.isdir(directory):
        raise ReportError(f"{directory} is not a directory; expected the run directory of local")
    base = glob.escape(directory)
    for place in _PLACES:
        paths = glob.glob(os.path.join(base, place, "timeline-*.json"))
        if paths:
            return sorted(os.path.normpath(path) for path in paths)
    runs = glob.glob(os.path.join(base, "*", _PLACES[0], "timeline-*.json"))
    if runs:
        newest = os.path.relpath(max(runs, key=os.path.getmtime), directory).split(os.sep)[0]
        raise ReportError(
            f"{directory}: this is a directory of runs; expected one of them, such as "
            f"{os.path.join(directory, newest)}"
        )
    raise ReportError(
        f"{directory}: there is no timeline-<host>.json in it, in output/data or in "
        "<host>/output/data; expected the run directory of local, after the job has ended "
        "(an entrypoint that was killed leaves none)"
    )


def read(path: str) -> HostTimeline:
    """Read the timeline of a host.

    Raises:
        ReportError: the file cannot be read, or is not a timeline.
    """
    try:
        size = os.path.getsize(path)
        if size > SIZE_LIMIT:
            raise ReportError(f"{path} has {size / 2**20:.0f} MiB; expected at most 64 MiB")
        with open(path, encoding="utf-8", opener=without_waiting) as file:
            trace = json.load(file)
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path} is not valid JSON: {error}") from error
    about = trace.get("otherData") if isinstance(trace, dict) else None
    if not isinstance(about, dict) or about.get("program") != PROGRAM:
        raise ReportError(f"{path} is not a timeline of {PROGRAM}")
    try:
        return _host(about, trace["traceEvents"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ReportError(
            f"{path} is damaged, or was written by another version: {what}"
        ) from error


def join(hosts: Sequence[HostTimeline]) -> JobTimeline:
    """Combine the timelines of a job's hosts.

    Raises:
        ReportError: there are two timelines of a host.
    """
    names = [each.host for each in hosts]
    for name in names:
        if names.count(name) > 1:
            raise ReportError(f"{name} has two timelines; expected those of one job")
    ordered = tuple(sorted(hosts, key=lambda each: _natural(each.host)))
    expected = sorted({name for each in hosts for name in each.hosts}, key=_natural)
    spans: List[Union[PhaseSpan, Process]] = []
    for each in hosts:
        spans += [*each.phases, *each.processes]
    stamps = [mark.when for each in hosts for mark in each.marks if mark.kind != "signal"]
    outcomes = [each.outcome for each in ordered]
    worst = next((o for o in (Outcome.FAILURE, Outcome.STOP) if o in outcomes), Outcome.SUCCESS)
    failure = next((each.failure for each in ordered if each.failure is not None), None)
    return JobTimeline(
        hosts=ordered,
        missing=tuple(name for name in expected if name not in names),
        start=min([*(span.start for span in spans), *stamps], default=0.0),
        end=max([*(span.end for span in spans), *stamps], default=0.0),
        outcome=worst,
        failure=failure,
        moment=_moment(ordered, worst, failure),
        restarts=max((each.restarts for each in ordered), default=0),
    )


def _moment(
    hosts: Sequence[HostTimeline], outcome: Outcome, failure: Optional[Failure]
) -> Optional[float]:
    """Return when the job failed or was stopped, else when a host first got the verdict."""
    if outcome is Outcome.SUCCESS:
        return None
    kind = "stop"
    if failure is not None:
        # Ignore failures before the last restart.
        since = max(
            (m.when for each in hosts for m in each.marks if m.kind == "restart"), default=0
        )
        own = [
            mark.when
            for each in hosts
            for mark in each.marks
            if mark.kind == "failure"
            and mark.when >= since
            and (each.host, mark.role) == (failure.host, failure.role.value)
        ]
        if own:
            return min(own)
        kind = "verdict"
    return min((m.when for each in hosts for m in each.marks if m.kind == kind), default=None)


def _natural(name: str) -> List[Any]:
    """Return a sort key that orders ``algo-2`` before ``algo-10``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _host(about: Mapping[str, Any], events: List[Mapping[str, Any]]) -> HostTimeline:
    phases, marks = [], []
    processes: List[Mapping[str, Any]] = []
    values: Dict[str, List[Tuple[float, float]]] = {}
    for event in events:
        kind = event.get("cat")
        if kind == "phase":
            phases.append(PhaseSpan(_text(event["name"]), *_interval(event)))
        elif kind == "process":
            processes.append(event)
        elif kind == "usage":
            (value,) = (event["args"][unit] for unit in (CPU, MEMORY) if unit in event["args"])
            values.setdefault(_text(event["name"]), []).append((_time(event), _number(value)))
        elif event.get("ph") == "i":
            marks.append(_mark(event))
    pids = {int(event["tid"]) for event in processes}
    failure, hosts = about.get("failure"), about.get("hosts", [about["host"]])
    return HostTimeline(
        host=_text(about["host"]),
        hosts=tuple(_text(name) for name in hosts),
        phases=tuple(phases),
        processes=tuple(
            sorted(
                (_process(event, values) for event in processes), key=lambda process: process.start
            )
        ),
        marks=tuple(
            mark
            if mark.pid in pids
            else Mark(mark.kind, mark.name, mark.when, None, mark.text, mark.role)
            for mark in marks
        ),
        outcome=Outcome(about["outcome"]),
        failure=None if failure is None else Failure.from_json(failure),
        restarts=int(about.get("restarts", 0)),
    )


def _process(event: Mapping[str, Any], values: Mapping[str, List[Tuple[float, float]]]) -> Process:
    name, args = _text(event["name"]), event["args"]
    status = args.get("exit status")
    return Process(
        int(event["tid"]),
        name,
        _text(args["role"]),
        *_interval(event),
        None if status is None else int(status),
        tuple(values.get(f"{name} CPU", ())),
        tuple(values.get(f"{name} memory", ())),
    )


def _mark(event: Mapping[str, Any]) -> Mark:
    kind, args = _text(event["cat"]), event["args"]
    if kind == "failure":
        failure = Failure.from_json(args)
        text, role = failure.headline(), failure.role.value
    else:
        text, role = _text(args["detail"]), ""
    return Mark(kind, _text(event["name"]), _time(event), int(event["tid"]), text, role)


def _interval(event: Mapping[str, Any]) -> Tuple[float, float]:
    start = _time(event)
    return start, start + max(0.0, _number(event["dur"]) / 1e6)


def _time(event: Mapping[str, Any]) -> float:
    return _number(event["ts"]) / 1e6


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not a number")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, not {value!r:.40}")
    return value
