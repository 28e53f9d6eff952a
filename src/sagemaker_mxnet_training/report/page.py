"""The report on a job as an HTML page: a chart of its hosts over time, and tables.

The page loads nothing: it includes plotly.js, and has a content security policy.
"""

import html
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sagemaker_mxnet_toolkit.failure import Outcome
from sagemaker_mxnet_training.host.timeline import HostPhase
from sagemaker_mxnet_training.host.verdict_text import WORDS, duration
from sagemaker_mxnet_training.report import summary
from sagemaker_mxnet_training.report.timelines import HostTimeline, JobTimeline, Mark, Process

_INK, _FAINT, _RED = "#1f2933", "#52606d", "#b42318"
_VERDICTS = {Outcome.SUCCESS: "#1a6b33", Outcome.STOP: "#8a4b00", Outcome.FAILURE: _RED}
_PHASES = {
    HostPhase.RESOLVE.value: "#d5dce4",
    HostPhase.FETCH.value: "#bccad8",
    HostPhase.INSTALL.value: "#9fb3c8",
    HostPhase.JOIN.value: "#cfc6e6",
    HostPhase.ROLES.value: "#b3a4d6",
    HostPhase.FIRST_STEP.value: "#8fc1e3",
    HostPhase.TRAIN.value: "#2b6cb0",
    HostPhase.CLEAR.value: "#e8b4b0",
    HostPhase.HOLD.value: "#e6dcc3",
    HostPhase.DRAIN.value: "#cdbf9b",
    HostPhase.END.value: "#b3a67f",
}
_ROLES = {"scheduler": "#7a4fa3", "rendezvous": "#7a4fa3", "server": "#c05621", "worker": "#13795b"}
_OTHER = "#829ab1"
_DASHES = ("solid", "dot", "dash", "dashdot", "longdash", "longdashdot")
_PREPARATION = ("fetch", "install")
"""Processes that share a row, since they run one after the other."""

_SYMBOLS = {
    "failure": ("x", _RED, 13),
    "signal": ("triangle-down", "#8a4b00", 11),
    "stop": ("diamond", "#8a4b00", 11),
    "checkpoint": ("square", "#1a6b33", 9),
    "restart": ("star", "#2b6cb0", 13),
}
_ROW, _PANEL, _GAP = 22, 130, 34
"""Heights in pixels of a row, of the panels below, and of the gaps between them."""
_WIDTH = 900
"""Width of the time axis in pixels, in a window of 1,280 pixels."""

_FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# No network access. The plotly.js of plotly 5.0 needs 'unsafe-eval'.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:"
)
_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
}
_STYLE = f"""
body {{ margin: 0 auto; max-width: 1500px; padding: 20px 28px 40px; color: {_INK}; background: #fff;
  font: 15px/1.45 {_FONTS}; }}
h1 {{ font-size: 21px; margin: 0 0 6px; }}
h2 {{ font-size: 15px; margin: 22px 0 6px; }}
.verdict {{ color: #fff; padding: 2px 10px; border-radius: 4px; margin-right: 8px; }}
.cause {{ font: 600 15px/1.4 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  color: {_INK}; border-left: 4px solid; padding: 4px 0 4px 12px; margin: 10px 0;
  overflow-wrap: anywhere; }}
dl {{ display: flex; flex-wrap: wrap; gap: 2px 28px; margin: 8px 0 4px; }}
dl div {{ display: flex; gap: 8px; }}
dt {{ color: {_FAINT}; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 3px 14px 3px 0; text-align: right; border-bottom: 1px solid #e4e7eb; }}
th {{ color: {_FAINT}; font-weight: 500; }}
th:first-child, td:first-child {{ text-align: left; }}
.tables {{ display: flex; flex-wrap: wrap; gap: 0 56px; }}
pre {{ background: #f5f7fa; padding: 10px 14px; overflow: auto; max-height: 24em;
  font-size: 13px; }}
"""


def page(job: JobTimeline, name: str) -> str:
    """Return the HTML page."""
    word, colour = WORDS[job.outcome], _VERDICTS[job.outcome]
    facts = dict(summary.facts(job))
    cause = facts.pop("cause", None)
    listed = "".join(f"<div><dt>{k}</dt><dd>{_safe(v)}</dd></div>" for k, v in facts.items())
    picture = figure(job).to_html(full_html=False, include_plotlyjs=True, config=_CONFIG)
    names, rows = summary.phase_table(job)
    usage = summary.usage_table(job)
    detail = job.failure.detail if job.failure is not None else ""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{word}: {_safe(name)}</title><style>{_STYLE}</style></head><body>",
        f'<h1><span class="verdict" style="background:{colour}">{word}</span>{_safe(name)}</h1>',
        f'<p class="cause" style="border-color:{colour}">{_safe(cause)}</p>' if cause else "",
        f"<dl>{listed}</dl>",
        _list(summary.attempts(job)),
        picture,
        f"<details open><summary>Detail</summary><pre>{_safe(detail)}</pre></details>"
        if detail
        else "",
        '<div class="tables">',
        f"<div><h2>Phases, in seconds</h2>{_table(['host', *names], rows)}</div>",
        "<div><h2>Processes</h2>"
        + _table(["process", "peak CPU", "mean CPU", "peak memory"], usage)
        + "</div>",
        "</div></body></html>",
    ]
    return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class _Row:
    """One row of the chart: the phases of a host, or some of its processes."""

    label: str
    host: HostTimeline
    processes: Tuple[Process, ...]

    @property
    def failed(self) -> bool:
        return any(summary.verdict_on(each, self.host) == "failed" for each in self.processes)


def figure(job: JobTimeline) -> Any:
    """Return the chart: rows of phases and processes, and below them CPU and memory."""
    rows = _rows(job)
    heights = [_ROW * len(rows), _PANEL, _PANEL]
    total = sum(heights) + 2 * _GAP
    fig = make_subplots(
        rows=3, cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=_GAP / total
    )
    axis = _Axis(job)
    for trace in [*_phases(rows, axis), *_processes(rows, axis), *_marks(rows, axis)]:
        fig.add_trace(trace, row=1, col=1)
    for panel, trace in _usage(job, axis):
        fig.add_trace(trace, row=panel, col=1)
    _name_phases(fig, rows, axis)
    _bands(fig, rows)
    _moment(fig, job, axis)
    labels = [_label(row) for row in rows]
    fig.update_yaxes(
        row=1, col=1, tickvals=list(range(len(rows))), ticktext=labels, showgrid=False,
        range=[len(rows) - 0.4, -0.6], fixedrange=True,
    )  # fmt: skip
    fig.update_yaxes(row=2, col=1, title_text="CPU, % of a core", rangemode="tozero")
    fig.update_yaxes(row=3, col=1, title_text="memory, MB", rangemode="tozero")
    fig.update_xaxes(range=[-0.01 * axis.length, 1.01 * axis.length], gridcolor="#e4e7eb")
    fig.update_xaxes(row=3, col=1, title_text=f"{axis.unit} after {summary.clock(job.start)}")
    fig.update_yaxes(gridcolor="#eef1f4", zeroline=False, title_font_size=12)
    fig.update_layout(
        height=total + 110, margin={"l": 96, "r": 150, "t": 44, "b": 46}, barmode="overlay",
        plot_bgcolor="#fff", paper_bgcolor="#fff", bargap=0.2, hovermode="closest",
        font={"family": _FONTS, "color": _INK, "size": 12},
        hoverlabel={"align": "left"},
        legend={
            "x": 1.01, "y": (2 * _PANEL + _GAP) / total, "yanchor": "top", "font_size": 12,
            "tracegroupgap": 0,
        },
    )  # fmt: skip
    return fig


class _Axis:
    """The time axis: from wall clock to seconds, minutes or hours since the job's start."""

    def __init__(self, job: JobTimeline) -> None:
        seconds = max(job.end - job.start, 1e-3)
        self.unit, self._size = next(
            ((unit, size) for unit, size, limit in _UNITS if seconds < limit), ("hours", 3600.0)
        )
        self._start = job.start
        self.length = seconds / self._size

    def at(self, when: float) -> float:
        return (when - self._start) / self._size

    def span(self, start: float, end: float) -> float:
        """Return a length, which is at least a visible hairline."""
        return max((end - start) / self._size, self.length * 5e-4)

    def text(self, when: float) -> str:
        return duration(when - self._start)


_UNITS = (("seconds", 1.0, 600.0), ("minutes", 60.0, 6 * 3600.0))


def _rows(job: JobTimeline) -> List[_Row]:
    rows = []
    for host in (*job.hosts, *(_missing_host(name, job) for name in job.missing)):
        rows.append(_Row(host.host, host, ()))
        preparation = tuple(each for each in host.processes if each.name in _PREPARATION)
        if preparation:
            rows.append(_Row(" · ".join(each.name for each in preparation), host, preparation))
        others = [each for each in host.processes if each.name not in _PREPARATION]
        # The processes of a role in several attempts share a row.
        for kind in dict.fromkeys(each.kind for each in sorted(others, key=lambda p: p.start)):
            rows.append(_Row(kind, host, tuple(each for each in others if each.kind == kind)))
    return rows


def _missing_host(name: str, job: JobTimeline) -> HostTimeline:
    """Return an empty timeline for a missing host, with its failure if it has failed."""
    marks: Tuple[Mark, ...] = ()
    if job.failure is not None and job.failure.host == name and job.moment is not None:
        marks = (Mark("failure", "failure", job.moment, None, job.failure.headline()),)
    return HostTimeline(name, (), (), (), marks, job.outcome, job.failure)


def _label(row: _Row) -> str:
    text = _safe(row.label)
    if not row.processes:
        failed = any(mark.kind == "failure" for mark in row.host.marks)
        colour = _RED if failed else _INK
        return f'<span style="color:{colour}"><b>{text}</b></span>'
    return f'<span style="color:{_RED}"><b>{text}</b></span>' if row.failed else text


def _phases(rows: Sequence[_Row], axis: _Axis) -> List[Any]:
    bars = [
        (y, each) for y, row in enumerate(rows) if not row.processes for each in row.host.phases
    ]
    colours = [_PHASES.get(each.name, _OTHER) for _, each in bars]
    return [
        go.Bar(
            orientation="h",
            y=[y for y, _ in bars],
            base=[axis.at(each.start) for _, each in bars],
            x=[axis.span(each.start, each.end) for _, each in bars],
            width=0.78,
            marker={"color": colours, "line": {"color": "#fff", "width": 0.5}},
            hovertext=[
                f"<b>{_safe(rows[y].label)}: {_safe(each.name)}</b><br>"
                f"{axis.text(each.start)} to {axis.text(each.end)}, "
                f"{duration(each.end - each.start)}"
                for y, each in bars
            ],
            hoverinfo="text",
            showlegend=False,
        )
    ]


def _name_phases(fig: Any, rows: Sequence[_Row], axis: _Axis) -> None:
    """Write the names of phases into bars that are wide enough; all are shown on hover."""
    for y, row in enumerate(rows):
        for each in () if row.processes else row.host.phases:
            share = (axis.at(each.end) - axis.at(each.start)) / axis.length
            if share * _WIDTH >= 7 * len(each.name) + 6:
                colour = _readable(_PHASES.get(each.name, _OTHER))
                fig.add_annotation(
                    x=(axis.at(each.start) + axis.at(each.end)) / 2, y=y, text=_safe(each.name),
                    showarrow=False, font={"color": colour, "size": 12},
                )  # fmt: skip


def _processes(rows: Sequence[_Row], axis: _Axis) -> List[Any]:
    bars = [(y, row, each) for y, row in enumerate(rows) for each in row.processes]
    failed = [summary.verdict_on(each, row.host) == "failed" for _, row, each in bars]
    return [
        go.Bar(
            orientation="h",
            y=[y for y, _, _ in bars],
            base=[axis.at(each.start) for _, _, each in bars],
            x=[axis.span(each.start, each.end) for _, _, each in bars],
            width=0.5,
            marker={
                "color": [_colour(each) for _, _, each in bars],
                "line": {
                    "color": [_RED if bad else "#fff" for bad in failed],
                    "width": [2.5 if bad else 0 for bad in failed],
                },
            },
            hovertext=[
                f"<b>{_safe(row.host.host)}: {_safe(each.name)}</b> (process {each.pid})<br>"
                f"{axis.text(each.start)} to {axis.text(each.end)}, "
                f"{summary.verdict_on(each, row.host)}"
                for _, row, each in bars
            ],
            hoverinfo="text",
            showlegend=False,
        )
    ]


def _marks(rows: Sequence[_Row], axis: _Axis) -> List[Any]:
    traces = []
    for kind, (symbol, colour, size) in _SYMBOLS.items():
        found = [
            (y, row, mark)
            for y, row in enumerate(rows)
            for mark in row.host.marks
            if mark.kind == kind and _belongs(mark, row)
        ]
        if found:
            traces.append(
                go.Scatter(
                    mode="markers",
                    name=kind,
                    x=[axis.at(mark.when) for _, _, mark in found],
                    y=[y for y, _, _ in found],
                    marker={
                        "symbol": symbol,
                        "color": colour,
                        "size": size,
                        "line": {"color": "#fff", "width": 1.5},
                    },
                    hovertext=[
                        f"<b>{_safe(row.host.host)}: {_safe(mark.name)}</b> "
                        f"at {axis.text(mark.when)}<br>{_wrapped(mark.text)}"
                        for _, row, mark in found
                    ],
                    hoverinfo="text",
                )
            )
    return traces


def _belongs(mark: Mark, row: _Row) -> bool:
    if not row.processes:
        return mark.pid is None
    return mark.pid in [each.pid for each in row.processes]


def _usage(job: JobTimeline, axis: _Axis) -> List[Tuple[int, Any]]:
    traces = []
    for number, host in enumerate(job.hosts):
        hidden = {*_PREPARATION, *(each.name for each in host.processes if each.name != each.kind)}
        for process in host.processes:
            for panel, values, unit in ((2, process.cpu, "%"), (3, process.memory, "MB")):
                name = f"{process.kind} · {host.host}" if len(job.hosts) > 1 else process.kind
                line: Dict[str, Any] = {"color": _colour(process), "width": 1.7}
                line["dash"] = _DASHES[number % len(_DASHES)]
                line["shape"] = "hv"
                trace = go.Scatter(
                    mode="lines",
                    name=_safe(name),
                    legendgroup=_safe(name),
                    showlegend=panel == 2 and bool(values) and process.name not in hidden,
                    x=[axis.at(when) for when, _ in values],
                    y=[value for _, value in values],
                    line=line,
                    hovertemplate=f"{_safe(name)}: %{{y:.0f}} {unit}<extra></extra>",
                )
                traces.append((panel, trace))
    return traces


def _bands(fig: Any, rows: Sequence[_Row]) -> None:
    """Draw a background for every second host."""
    hosts = [row.host.host for row in rows]
    for number, host in enumerate(dict.fromkeys(hosts)):
        if number % 2 == 0:
            first = hosts.index(host)
            fig.add_shape(
                type="rect", xref="x domain", x0=-0.085, x1=1, yref="y", y0=first - 0.5,
                y1=first + hosts.count(host) - 0.5, fillcolor="#f5f7fa", line_width=0,
                layer="below",
            )  # fmt: skip


def _moment(fig: Any, job: JobTimeline, axis: _Axis) -> None:
    """Draw a vertical line at the time when the job failed or was asked to stop."""
    if job.moment is None:
        return
    colour, at = _VERDICTS[job.outcome], axis.at(job.moment)
    text = "asked to stop"
    if job.failure is not None:
        text = f"{job.failure.process} on {job.failure.host} failed: {job.failure.reason}"
    fig.add_shape(
        type="line", xref="x", x0=at, x1=at, yref="paper", y0=0, y1=1,
        line={"color": colour, "width": 1.5, "dash": "dash"},
    )  # fmt: skip
    late = at > axis.length / 2
    fig.add_annotation(
        xref="x", x=at, yref="paper", y=1, yanchor="bottom", showarrow=False,
        xanchor="right" if late else "left", font={"color": colour, "size": 13},
        text=f"<b>{axis.text(job.moment)}</b> {_safe(_short(text, 90))}",
    )  # fmt: skip


def _colour(process: Process) -> str:
    return _ROLES.get(process.role, _OTHER)


def _readable(colour: str) -> str:
    """Return the text colour with the better contrast on a colour (WCAG relative luminance)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else _INK


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f"<th>{_safe(cell)}</th>" for cell in head)
    lines = ["".join(f"<td>{_safe(cell)}</td>" for cell in row) for row in rows]
    return f"<table><tr>{heads}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{_safe(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if lines else ""


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _wrapped(text: str, width: int = 90) -> str:
    text = _short(text, 6 * width)
    return "<br>".join(_safe(text[i : i + width]) for i in range(0, len(text), width))


def _safe(text: Optional[str]) -> str:
    # plotly interprets some HTML, and %{} in templates.
    return html.escape(text or "").replace("%{", "%&#123;")
