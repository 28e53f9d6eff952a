"""The timeline is what trace viewers read."""

import json
import os
import time
from pathlib import Path
from typing import Any, Dict, List

from sagemaker_mxnet_training.host.timeline import Timeline


def written(timeline: Timeline, directory: Path) -> List[Dict[str, Any]]:
    timeline.write(str(directory))
    with open(directory / f"timeline-{timeline.host}.json", encoding="utf-8") as file:
        events: List[Dict[str, Any]] = json.load(file)["traceEvents"]
    return events


def test_phases_follow_each_other_without_a_gap(tmp_path: Path) -> None:
    timeline = Timeline("algo-1")
    for name in ("fetch", "install", None):
        timeline.phase(name)
    assert list(timeline.phases()) == ["fetch", "install"]
    spans = [event for event in written(timeline, tmp_path) if event["ph"] == "X"]
    assert [span["name"] for span in spans] == ["fetch", "install"]
    assert abs(spans[0]["ts"] + spans[0]["dur"] - spans[1]["ts"]) <= 1, "microseconds"


def test_a_phase_that_has_not_ended_is_not_told(tmp_path: Path) -> None:
    timeline = Timeline("algo-1")
    timeline.phase("train")
    assert timeline.phases() == {}
    assert not [event for event in written(timeline, tmp_path) if event["ph"] == "X"]


def test_processes_have_rows_of_their_own(tmp_path: Path) -> None:
    timeline = Timeline("algo-1")
    timeline.process(77, "worker", time.monotonic() - 1.5, 3)
    events = written(timeline, tmp_path)
    (span,) = [event for event in events if event["ph"] == "X"]
    assert (span["tid"], span["name"], span["args"]) == (77, "worker", {"exit status": 3})
    assert span["dur"] >= 1_500_000
    rows = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert rows == {0: "job", 77: "worker"}
    assert timeline.phases() == {}, "the life of a process is no phase"


def test_times_are_wall_clock_microseconds(tmp_path: Path) -> None:
    """So that the timelines of several hosts can be laid over each other."""
    before = time.time()
    timeline = Timeline("algo-1")
    timeline.instant("failure", "boom")
    after = time.time()
    (instant,) = [event for event in written(timeline, tmp_path) if event["ph"] == "i"]
    assert (before - 1) * 1e6 <= instant["ts"] <= (after + 1) * 1e6
    assert instant["args"] == {"detail": "boom"}
    assert (instant["pid"], instant["s"]) == ("algo-1", "p")


def test_nothing_but_the_whole_file_appears(tmp_path: Path) -> None:
    timeline = Timeline("algo-1")
    written(timeline, tmp_path / "data")
    assert os.listdir(tmp_path / "data") == ["timeline-algo-1.json"]


def test_a_place_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    Timeline("algo-1").write(str(tmp_path / "data"))
    assert (tmp_path / "data").read_text() == "in the way"
