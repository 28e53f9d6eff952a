"""A job in a few lines of text: how it ended, and if it failed, what, where and when."""

import time
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from sagemaker_mxnet_toolkit.failure import Outcome
from sagemaker_mxnet_training.host.phase import HostPhase
from sagemaker_mxnet_training.host.verdict_text import advice, duration, headline
from sagemaker_mxnet_training.report.timelines import HostTimeline, JobTimeline, Process


def facts(job: JobTimeline) -> Mapping[str, str]:
    """Return the most important facts, each under a word for it."""
    told: Dict[str, str] = {}
    if job.failure is not None:
        told["cause"] = job.failure.headline()
        told["kind"] = job.failure.kind.value
        told["where"] = f"{job.failure.role.value} on {job.failure.host}"
        told["next"] = advice(job.failure, "", "")
    if job.outcome is Outcome.STOP:
        marks = [m for each in job.hosts for m in each.marks if m.kind == "stop"]
        if marks:
            told["cause"] = f"{marks[0].text}: somebody asked the job to stop"
    if job.moment is not None:
        told["when"] = f"{clock(job.moment)}, {duration(job.moment - job.start)} after the start"
    told["began"] = f"{clock(job.start)}, ran {duration(job.end - job.start)}"
    names = [each.host for each in job.hosts]
    told["hosts"] = f"{len(names)}: {', '.join(names)}"
    if job.missing:
        told["missing"] = (
            f"{', '.join(job.missing)}: no timeline; "
            "the entrypoint was killed, or what it wrote is elsewhere"
        )
    return told


def text(job: JobTimeline) -> str:
    """Return the summary, without the page's name."""
    lines = [headline(job.outcome, job.end - job.start)]
    lines += [f"  {word:<8}{told}" for word, told in facts(job).items()]
    names, rows = phase_table(job)
    lines += ["", *_columns(["phase (s)", *names], rows)]
    lines += ["", *_columns(["process", "peak CPU", "mean CPU", "peak memory"], usage_table(job))]
    return "\n".join(_printable(line) for line in lines)


def phase_table(job: JobTimeline) -> Tuple[List[str], List[List[str]]]:
    """Return the names of all phases, and for each host a row of the seconds that they took."""
    found = {phase.name for each in job.hosts for phase in each.phases}
    names: List[str] = [phase.value for phase in HostPhase if phase.value in found]
    names += sorted(found.difference(names))
    rows = []
    for each in job.hosts:
        took: Dict[str, float] = {}
        for phase in each.phases:
            took[phase.name] = took.get(phase.name, 0.0) + phase.end - phase.start
        cells = [f"{took[name]:.1f}" if name in took else "-" for name in names]
        rows.append([each.host, *cells])
    return names, rows


def usage_table(job: JobTimeline) -> List[List[str]]:
    """Return a row for each process: its name, peak and mean CPU, peak memory."""
    return [
        [
            f"{host.host} {process.name}",
            _percent(max((value for _, value in process.cpu), default=None)),
            _percent(_mean(process)),
            _megabytes(max((value for _, value in process.memory), default=None)),
        ]
        for host in job.hosts
        for process in host.processes
    ]


def verdict_on(process: Process, host: HostTimeline) -> str:
    """Return how a process ended, in a few words."""
    if any(mark.kind == "failure" and mark.pid == process.pid for mark in host.marks):
        return "failed"
    if process.status is None:
        return "still ran"
    return f"exit status {process.status}"


def clock(when: float) -> str:
    """Return a wall clock time (seconds) as a date and a time in UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when))
    except (OverflowError, ValueError, OSError):
        return f"{when:.0f} s after 1970"


def _mean(process: Process) -> Optional[float]:
    """Return the mean load; each value counts for as long as it holds."""
    pairs = list(zip(process.cpu, process.cpu[1:]))
    seconds = sum(b[0] - a[0] for a, b in pairs)
    return sum(a[1] * (b[0] - a[0]) for a, b in pairs) / seconds if seconds > 0 else None


def _percent(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.0f} %"


def _megabytes(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:,.0f} MB"


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    table = [head, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in table
    ]


def _printable(line: str) -> str:
    """Return a line that does nothing to the terminal it is printed on."""
    return "".join(c if c.isprintable() else " " for c in line)
