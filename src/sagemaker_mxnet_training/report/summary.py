"""A summary of a job as text: how it ended, and the cause of a failure."""

import time
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from sagemaker_mxnet_toolkit.failure import Outcome
from sagemaker_mxnet_training.host.timeline import HostPhase
from sagemaker_mxnet_training.host.verdict_text import advice, duration, headline
from sagemaker_mxnet_training.report.timelines import HostTimeline, JobTimeline, Mark, Process


def facts(job: JobTimeline) -> Mapping[str, str]:
    """Return the most important facts, each with a label."""
    found: Dict[str, str] = {}
    if job.failure is not None:
        found["cause"] = job.failure.headline()
        found["kind"] = job.failure.kind.value
        found["where"] = f"{job.failure.process} on {job.failure.host}"
        found["next"] = advice(job.failure)
    if job.outcome is Outcome.STOP:
        marks = [m for each in job.hosts for m in each.marks if m.kind == "stop"]
        if marks:
            found["cause"] = f"{marks[0].text}: the job was asked to stop"
    if job.moment is not None:
        found["when"] = f"{clock(job.moment)}, {duration(job.moment - job.start)} after the start"
    found["started"] = f"{clock(job.start)}, ran {duration(job.end - job.start)}"
    names = [each.host for each in job.hosts]
    found["hosts"] = f"{len(names)}: {', '.join(names)}"
    if job.missing:
        found["missing"] = (
            f"{', '.join(job.missing)}: no timeline; "
            "the entrypoint was killed, or its output is in another directory"
        )
    return found


def text(job: JobTimeline) -> str:
    """Return the summary, without the page's name."""
    head = headline(job.outcome, job.end - job.start, job.restarts)
    shown = lines(head, [*facts(job).items(), *attempts(job)])
    names, rows = phase_table(job)
    shown += ["", *_columns(["phase (s)", *names], rows)]
    shown += ["", *_columns(["process", "peak CPU", "mean CPU", "peak memory"], usage_table(job))]
    return "\n".join(_printable(line) for line in shown)


def lines(head: str, facts: Iterable[Union[str, Tuple[str, str]]]) -> List[str]:
    """Return the lines of a summary: the headline, then each fact, with or without a label."""
    return [head, *(f"  {x}" if isinstance(x, str) else f"  {x[0]:<8}{x[1]}" for x in facts)]


def longest_phases(hosts: Sequence[HostTimeline]) -> str:
    """Return the phases except the last, each with its time on the host that took longest."""
    longest: Dict[str, float] = {}
    for host in hosts:
        for name, seconds in _phase_times(host).items():
            longest[name] = max(seconds, longest.get(name, 0.0))
    # Skip phases that would be shown as 0.0 s.
    known = [
        f"{phase.value} {longest[phase.value]:.1f} s"
        for phase in HostPhase
        if phase is not HostPhase.END and longest.get(phase.value, 0.0) > 0.05
    ]
    return ", ".join(known) or "unknown"


def attempts(job: JobTimeline) -> List[str]:
    """Return a line for each restart: its cause, the lost training, and its duration."""
    marks = sorted((m for each in job.hosts for m in each.marks), key=lambda mark: mark.when)
    steps = sorted(
        phase.end
        for each in job.hosts
        for phase in each.phases
        if phase.name == HostPhase.FIRST_STEP.value
    )
    found: Dict[str, str] = {}
    for mark in marks:
        if mark.kind == "restart" and mark.name not in found:
            failed = max(
                (m.when for m in marks if m.kind == "failure" and m.when <= mark.when),
                default=mark.when,
            )
            resumed = next((m.name for m in marks if _resumes(m, mark.name)), "")
            parts = [f"{mark.name}: after {mark.text}"]
            parts.append(f"from {resumed}" if resumed else "from the beginning")
            written = next((m.when for m in marks if _wrote(m, resumed)), None)
            if written is not None:
                parts.append(f"{duration(max(0.0, failed - written))} of training lost")
            again = next((step for step in steps if step > failed), None)
            if again is not None:
                parts.append(f"training again after {duration(again - failed)}")
            found[mark.name] = "; ".join(parts)
    return list(found.values())


def _resumes(mark: Mark, attempt: str) -> bool:
    return mark.kind == "resume" and mark.text == attempt


def _wrote(mark: Mark, name: str) -> bool:
    return mark.kind == "checkpoint" and mark.name == name


def phase_table(job: JobTimeline) -> Tuple[List[str], List[List[str]]]:
    """Return the names of all phases, and a row of their durations for each host."""
    found = {phase.name for each in job.hosts for phase in each.phases}
    names: List[str] = [phase.value for phase in HostPhase if phase.value in found]
    names += sorted(found.difference(names))
    rows = []
    for each in job.hosts:
        took = _phase_times(each)
        cells = [f"{took[name]:.1f}" if name in took else "-" for name in names]
        rows.append([each.host, *cells])
    return names, rows


def _phase_times(host: HostTimeline) -> Dict[str, float]:
    """Return the seconds of each phase, of all attempts together."""
    took: Dict[str, float] = {}
    for phase in host.phases:
        took[phase.name] = took.get(phase.name, 0.0) + phase.end - phase.start
    return took


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
        return "still running"
    return f"exit status {process.status}"


def clock(when: float) -> str:
    """Format a wall clock time (seconds) as date and time in UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when))
    except (OverflowError, ValueError, OSError):
        return f"{when:.0f} s after 1970"


def _mean(process: Process) -> Optional[float]:
    """Return the mean load, weighted by time."""
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
    """Replace characters that could affect a terminal."""
    return "".join(c if c.isprintable() else " " for c in line)
