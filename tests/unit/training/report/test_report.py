"""The report: from timelines to text and page, as pure functions of what was read."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_training import report
from sagemaker_mxnet_training.cluster.events import Verdict
from sagemaker_mxnet_training.host.observer import Track, Usage
from sagemaker_mxnet_training.host.timeline import HostPhase, Timeline
from sagemaker_mxnet_training.host.verdict_text import duration
from sagemaker_mxnet_training.report import page, summary, timelines
from sagemaker_mxnet_training.report.timelines import JobTimeline, ReportError

HOSTS = ("algo-1", "algo-2", "algo-10")
EVIL = "boom <script>alert(1)</script> </script><img src=http://evil.example/x> %{y} & \x1b[31m"
EXCEPTION = FailureKind.EXCEPTION
FAILURE = Failure("algo-2", Role.WORKER, EVIL, EXCEPTION, 3, f"Traceback\n  {EVIL}")
STARTED = 1000.0  # on the clock that timelines are written by
WALL = 1700000000.0  # the same moment, as all hosts tell it


def write(
    directory: Path,
    host: str,
    verdict: Verdict,
    failure: Optional[Failure] = None,
    at: float = 30.0,
) -> None:
    """Write the timeline of a host that trained from second 2 to second 20 or so."""
    timeline = Timeline(host, lambda: STARTED + 20, lambda: WALL + 20)
    track = Track(STARTED + 2)
    for second in range(3, 20):
        track.add(STARTED + second, Usage(cpu=0.5 * (second - 2), memory=second * 10_000_000))
    timeline.phase(HostPhase.RESOLVE, STARTED)
    timeline.phase(HostPhase.FIRST_STEP, STARTED + 2)
    timeline.phase(HostPhase.TRAIN, STARTED + 10)
    if failure is not None:
        timeline.failure(failure, STARTED + at, 77)
    timeline.phase(None, STARTED + 20)
    sent = [(STARTED + 19, 15)]
    timeline.process(77, "worker", Role.WORKER, STARTED + 2, 3, sent, track)
    timeline.instant("stop", "stop", "SIGTERM to algo-1")
    timeline.instant("verdict", verdict.outcome.value)
    timeline.write(str(directory), verdict, {"hosts": HOSTS, "exit status": 1})


@pytest.fixture
def failed(tmp_path: Path) -> JobTimeline:
    for host in HOSTS:
        own = FAILURE if host == "algo-2" else None
        write(tmp_path, host, Verdict(Outcome.FAILURE, FAILURE), own, 12.5)
    return job(tmp_path)


def job(directory: Path) -> JobTimeline:
    return timelines.join([timelines.read(path) for path in timelines.find(str(directory))])


def test_a_failure_has_a_place_and_a_time(failed: JobTimeline) -> None:
    assert [each.host for each in failed.hosts] == list(HOSTS), "10 comes after 2"
    assert failed.outcome is Outcome.FAILURE
    assert failed.moment is not None
    assert failed.moment - failed.start == pytest.approx(12.5, abs=0.001)
    facts = summary.facts(failed)
    assert facts["where"] == "worker on algo-2"
    assert facts["when"].endswith("UTC, 12.5 s after the start")


def test_summary_is_complete(failed: JobTimeline) -> None:
    text = summary.text(failed)
    assert text.startswith("job FAILED after ")
    assert "cause   algo-2: worker failed: boom" in text
    assert "kind    exception" in text
    assert "next    read the output of algo-2 before its end: `local` has printed it, and " in text
    assert "\x1b" not in text, "a failure does nothing to the terminal"
    (row,) = [line.split() for line in text.splitlines() if line.startswith("  algo-10  ")]
    assert row[:4] == ["algo-10", "2.0", "8.0", "10.0"]
    (row,) = [line.split() for line in text.splitlines() if line.startswith("  algo-2 worker")]
    assert row == ["algo-2", "worker", "50", "%", "50", "%", "190", "MB"]


def test_a_host_that_left_nothing_is_named(tmp_path: Path) -> None:
    """Its entrypoint was killed: the others say so, and when they heard of it."""
    reason = "lost: its connection closed unexpectedly"
    lost = Failure("algo-2", Role.ENTRYPOINT, reason, kind=FailureKind.LOST)
    for host in ("algo-1", "algo-10"):
        write(tmp_path, host, Verdict(Outcome.FAILURE, lost))
    found = job(tmp_path)
    assert found.missing == ("algo-2",)
    verdicts = [m.when for each in found.hosts for m in each.marks if m.kind == "verdict"]
    assert found.moment == min(verdicts)
    assert "algo-2: no timeline" in summary.text(found)
    assert "the machine of algo-2" in summary.facts(found)["next"]
    rows = page.figure(found).layout.yaxis.ticktext
    assert "algo-2" in rows[-1] and "#b42318" in rows[-1]


def test_a_stop_is_no_failure(tmp_path: Path) -> None:
    for host in HOSTS:
        write(tmp_path, host, Verdict(Outcome.STOP))
    found = job(tmp_path)
    assert summary.text(found).startswith("job STOPPED")
    assert "SIGTERM to algo-1: the job was asked" in summary.facts(found)["cause"]
    assert found.moment is not None


def test_restart_is_reported_with_reason_loss_and_duration(tmp_path: Path) -> None:
    now = [STARTED]
    timeline = Timeline("algo-1", lambda: now[0], lambda: WALL)

    def at(second: float) -> None:
        now[0] = STARTED + second

    timeline.phase(HostPhase.ROLES)
    at(4.0)
    timeline.phase(HostPhase.TRAIN, ended_as=HostPhase.FIRST_STEP)
    at(10.0)
    timeline.failure(FAILURE, now[0], 77)
    timeline.process(77, "worker", Role.WORKER, STARTED, 137)
    timeline.instant("checkpoint", "checkpoint-000002-step-9.zip", "step 9", STARTED + 7.5)
    timeline.instant("restart", "attempt 2", FAILURE.headline())
    timeline.phase(HostPhase.CLEAR)
    at(11.0)
    timeline.instant("resume", "checkpoint-000002-step-9.zip", "attempt 2")
    timeline.phase(HostPhase.ROLES)
    at(14.0)
    timeline.phase(HostPhase.TRAIN, ended_as=HostPhase.FIRST_STEP)
    at(20.0)
    timeline.process(78, "worker #2", Role.WORKER, STARTED + 11, 0)
    timeline.phase(None)
    timeline.write(str(tmp_path), Verdict(Outcome.SUCCESS, None, 1, FAILURE.headline()))
    found = job(tmp_path)
    assert summary.longest_phases(found.hosts) == "first step 7.0 s, train 12.0 s, clear 1.0 s"
    assert summary.text(found).startswith("job SUCCEEDED after 20.0 s and 1 restart")
    assert summary.attempts(found) == [
        f"attempt 2: after {FAILURE.headline()}; from checkpoint-000002-step-9.zip; "
        "2.5 s of training lost; training again after 4.0 s"
    ]
    assert list(page.figure(found).layout.yaxis.ticktext)[1:] == [
        '<span style="color:#b42318"><b>worker</b></span>'
    ], "both workers are in one row"
    assert "training again after" in page.page(found, "job")


def test_success(tmp_path: Path) -> None:
    write(tmp_path, "algo-1", Verdict(Outcome.SUCCESS))
    found = job(tmp_path)
    assert found.moment is None
    assert "cause" not in summary.facts(found)
    shapes = page.figure(found).layout.shapes
    assert not [shape for shape in shapes if shape.type == "line"], "no line of a failure"


# The page.


def traces(figure: Any, panel: str) -> List[Any]:
    return [trace for trace in figure.data if trace.yaxis == panel]


def test_chart_has_a_row_per_process_and_a_line_at_the_failure(failed: JobTimeline) -> None:
    figure = page.figure(failed)
    rows = [re.sub("<[^>]*>", "", label) for label in figure.layout.yaxis.ticktext]
    assert rows == ["algo-1", "worker", "algo-2", "worker", "algo-10", "worker"]
    (line,) = [shape for shape in figure.layout.shapes if shape.type == "line"]
    assert line.x0 == line.x1 == pytest.approx(12.5, abs=0.001)
    (crosses,) = [trace for trace in figure.data if trace.name == "failure"]
    assert list(crosses.y) == [2, 3], "the rows of the host and of its worker"
    assert list(crosses.x) == pytest.approx([12.5, 12.5], abs=0.001)
    assert "boom" in crosses.hovertext[0]
    (signals,) = [trace for trace in figure.data if trace.name == "signal"]
    assert list(signals.y) == [1, 3, 5]
    for panel in ("y2", "y3"):
        names = [trace.name for trace in traces(figure, panel)]
        assert names == [f"worker · {host}" for host in HOSTS]
    assert max(traces(figure, "y2")[0].y) == pytest.approx(50)
    assert max(traces(figure, "y3")[0].y) == 190


def test_page_needs_no_network_and_runs_nothing_of_others(failed: JobTimeline) -> None:
    text = page.page(failed, "run <1>")
    assert "Plotly.newPlot" in text
    assert not re.search(r"""<(script|img|iframe)[^>]*\ssrc=["']?(https?:)?//""", text)
    assert not re.search(r"<link[^>]*href", text)
    assert "default-src 'none'" in text
    assert "<script>alert" not in text and "<img src=http" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "run &lt;1&gt;" in text
    assert ">FAILED<" in text


@pytest.mark.parametrize("background", sorted({*page._PHASES.values(), page._OTHER}))
def test_text_on_a_bar_is_legible(background: str) -> None:
    """WCAG asks for a contrast of 4.5 for small text."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear))

    pair = sorted([luminance(background), luminance(page._readable(background))])
    assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5


# What is no timeline.

SOUND: Dict[str, Any] = {
    "traceEvents": [],
    "otherData": {"program": "sagemaker-mxnet-training", "host": "algo-1", "outcome": "success"},
}
PHASE = {"ph": "X", "cat": "phase", "name": "train", "ts": 1, "dur": 1, "tid": 1, "args": {}}
BAD: Dict[str, Tuple[str, str]] = {
    "empty": ("", "not valid JSON"),
    "torn": ('{"traceEvents": [', "not valid JSON"),
    "binary": ("\udcff", "not valid JSON"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "list": ("[]", "is not a timeline of"),
    "mxnet": ('{"traceEvents": [], "displayTimeUnit": "ms"}', "is not a timeline of"),
    "no-events": (json.dumps({"otherData": SOUND["otherData"]}), "damaged"),
    "events": (json.dumps({**SOUND, "traceEvents": [1]}), "damaged"),
    "time": (json.dumps({**SOUND, "traceEvents": [{**PHASE, "ts": "x"}]}), "damaged"),
    "infinite": (json.dumps({**SOUND, "traceEvents": [{**PHASE, "ts": 1e999}]}), "damaged"),
    "name": (json.dumps({**SOUND, "traceEvents": [{**PHASE, "name": {}}]}), "damaged"),
    "outcome": (
        json.dumps({**SOUND, "otherData": {**SOUND["otherData"], "outcome": "x"}}),
        "damaged",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(tmp_path: Path, name: str, capsys: "pytest.CaptureFixture[str]") -> None:
    content, told = BAD[name]
    path = tmp_path / "timeline-algo-1.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert report.run(str(tmp_path), None) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sagemaker-mxnet-training report: {path} ")
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_huge_input(tmp_path: Path) -> None:
    path = tmp_path / "timeline-algo-1.json"
    with open(path, "wb") as file:
        file.truncate(timelines.SIZE_LIMIT + 1)
    with pytest.raises(ReportError, match=rf"{path} has 64 MiB"):
        timelines.read(str(path))


def test_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "timeline-algo-1.json")
    with pytest.raises(ReportError, match="a FIFO"):
        timelines.read(str(tmp_path / "timeline-algo-1.json"))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="is not a directory"):
        timelines.find(str(tmp_path / "none"))
    with pytest.raises(ReportError, match="no timeline-<host>.json"):
        timelines.find(str(tmp_path))


def test_directory_of_runs_names_the_newest(tmp_path: Path) -> None:
    for age, run in enumerate(("new", "old")):
        write(tmp_path / run / "algo-1/output/data", "algo-1", Verdict(Outcome.SUCCESS))
        path = tmp_path / run / "algo-1/output/data/timeline-algo-1.json"
        os.utime(path, (10**9 - age, 10**9 - age))
    with pytest.raises(ReportError, match=f"a directory of runs.*, such as {tmp_path}/new$"):
        timelines.find(str(tmp_path))


@pytest.mark.parametrize("place", ["algo-1/output/data", "output/data", "."])
def test_places(tmp_path: Path, place: str) -> None:
    """A local run, one host's /opt/ml, and an unpacked output.tar.gz; names may hold anything."""
    base = tmp_path / "run [1]*"
    write(base / place, "algo-1", Verdict(Outcome.SUCCESS))
    assert timelines.find(str(base)) == [str(base / place / "timeline-algo-1.json")]


def test_hosts_of_two_jobs(tmp_path: Path) -> None:
    for run in ("a", "b"):
        write(tmp_path / run / "output/data", "algo-1", Verdict(Outcome.SUCCESS))
    with pytest.raises(ReportError, match="algo-1 has two timelines"):
        job(tmp_path)


# The command.


def test_without_plotly_the_summary_is_printed(
    tmp_path: Path, capsys: "pytest.CaptureFixture[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "algo-1", Verdict(Outcome.SUCCESS))
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    monkeypatch.delitem(sys.modules, "sagemaker_mxnet_training.report.page")
    monkeypatch.delattr("sagemaker_mxnet_training.report.page")
    assert report.run(str(tmp_path), None) == 1
    out, error = capsys.readouterr()
    assert out.startswith("job SUCCEEDED")
    assert "pip install 'plotly>=5,<7'" in error and error.count("\n") == 1


def test_page_that_cannot_be_written(tmp_path: Path, capsys: "pytest.CaptureFixture[str]") -> None:
    write(tmp_path, "algo-1", Verdict(Outcome.SUCCESS))
    output = str(tmp_path / "none" / "page.html")
    assert report.run(str(tmp_path), output) == 1
    assert f"cannot write the page: {output}: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.04, "0.0 s"), (99.0, "99.0 s"), (185, "3 min 05 s"), (7380, "2 h 03 min"), (1e6, "277 h")],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds).startswith(told)
