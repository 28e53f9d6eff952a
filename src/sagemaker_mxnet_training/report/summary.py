"""A job in a few lines of text: how it ended, and if it failed, what, where and when."""

import time
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from sagemaker_mxnet_toolkit.failure import Outcome
from sagemaker_mxnet_training.host.phase import HostPhase
from sagemaker_mxnet_training.host.verdict_text import advice, duration, headline
from sagemaker_mxnet_training.report.timelines import HostTimeline, JobTimeline, Mark, Process


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
    lines = [headline(job.outcome, job.end - job.start, job.restarts)]
    lines += [f"  {word:<8}{told}" for word, told in facts(job).items()]
    lines += [f"  {text}" for text in attempts(job)]
    names, rows = phase_table(job)
    lines += ["", *_columns(["phase (s)", *names], rows)]
    lines += ["", *_columns(["process", "peak CPU", "mean CPU", "peak memory"], usage_table(job))]
    return "\n".join(_printable(line) for line in lines)


def attempts(job: JobTimeline) -> List[str]:
    """Return a line for each restart: what ended the attempt, what was lost, how long it took."""
    return [_attempt(each) for each in restarts(job)]


@dataclass(frozen=True)
class RestartFacts:
    """What a restart was about.

    Attributes:
        name: of the attempt that began, such as ``attempt 2``.
        cause: what ended the one before.
        resumed: name of the checkpoint it went on from; empty for none.
        lost: seconds of training since that checkpoint; ``None`` if that is not known.
        back: seconds from the failure to the first step of the new attempt, if it got there.
    """

    name: str
    cause: str
    resumed: str = ""
    lost: Optional[float] = None
    back: Optional[float] = None


def restarts(job: JobTimeline) -> List[RestartFacts]:
    """Return the facts of each restart, in order, as the hosts' timelines have them."""
    marks = sorted((m for each in job.hosts for m in each.marks), key=lambda mark: mark.when)
    steps = sorted(
        phase.end
        for each in job.hosts
        for phase in each.phases
        if phase.name == HostPhase.FIRST_STEP.value
    )
    told: Dict[str, RestartFacts] = {}
    for mark in marks:
        if mark.kind == "restart" and mark.name not in told:
            failed = max(
                (m.when for m in marks if m.kind == "failure" and m.when <= mark.when),
                default=mark.when,
            )
            resumed = next((m.name for m in marks if _resumes(m, mark.name)), "")
            written = next((m.when for m in marks if _wrote(m, resumed)), None)
            again = next((step for step in steps if step > failed), None)
            told[mark.name] = RestartFacts(
                mark.name,
                mark.text,
                resumed,
                None if written is None else max(0.0, failed - written),
                None if again is None else again - failed,
            )
    return list(told.values())


def _resumes(mark: Mark, attempt: str) -> bool:
    return mark.kind == "resume" and mark.text == attempt


def _wrote(mark: Mark, name: str) -> bool:
    return mark.kind == "checkpoint" and mark.name == name


def _attempt(facts: RestartFacts) -> str:
    words = [f"{facts.name}: after {facts.cause}"]
    words.append(f"from {facts.resumed}" if facts.resumed else "from the beginning")
    if facts.lost is not None:
        words.append(f"{duration(facts.lost)} of training lost")
    if facts.back is not None:
        words.append(f"training again after {duration(facts.back)}")
    return "; ".join(words)


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
