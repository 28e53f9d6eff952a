"""The timeline is what trace viewers read."""

import json
import os
import time
from pathlib import Path
from typing import Any, Dict, List

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_training.cluster.events import Verdict
from sagemaker_mxnet_training.host.observer import Track, Usage
from sagemaker_mxnet_training.host.timeline import HostPhase, Timeline

EXCEPTION = FailureKind.EXCEPTION
FAILURE = Failure("algo-1", Role.WORKER, "ValueError: boom", EXCEPTION, 1, "Trace ...")


def whole(timeline: Timeline, directory: Path) -> Dict[str, Any]:
    with open(directory / f"timeline-{timeline.host}.json", encoding="utf-8") as file:
        trace: Dict[str, Any] = json.load(file)
    return trace


def written(timeline: Timeline, directory: Path) -> List[Dict[str, Any]]:
    timeline.write(str(directory))
    events: List[Dict[str, Any]] = whole(timeline, directory)["traceEvents"]
    return events


def of(events: List[Dict[str, Any]], kind: str) -> List[Dict[str, Any]]:
    return [event for event in events if event["ph"] == kind]


def test_phases_follow_each_other_without_a_gap(tmp_path: Path) -> None:
    timeline = Timeline("algo-1")
    for phase in (HostPhase.FETCH, HostPhase.INSTALL, None):
        timeline.phase(phase)
    spans = of(written(timeline, tmp_path), "X")
    assert [span["name"] for span in spans] == ["fetch", "install"]
    assert abs(spans[0]["ts"] + spans[0]["dur"] - spans[1]["ts"]) <= 1, "microseconds"


def test_a_phase_may_have_begun_before_the_timeline(tmp_path: Path) -> None:
    timeline = Timeline("algo-1")
    timeline.phase(HostPhase.RESOLVE, time.monotonic() - 5.0)
    timeline.phase(None)
    (span,) = of(written(timeline, tmp_path), "X")
    assert span["dur"] >= 5e6


def test_a_phase_may_be_named_when_it_ends(tmp_path: Path) -> None:
    """Whether there was a first step is known after it."""
    timeline = Timeline("algo-1")
    timeline.phase(HostPhase.TRAIN)
    timeline.phase(HostPhase.TRAIN, ended_as=HostPhase.FIRST_STEP)
    assert timeline.current is HostPhase.TRAIN
    timeline.phase(None)
    spans = of(written(timeline, tmp_path), "X")
    assert [span["name"] for span in spans] == ["first step", "train"]


def test_a_phase_that_has_not_ended_is_not_told(tmp_path: Path) -> None:
    timeline = Timeline("algo-1")
    timeline.phase(HostPhase.TRAIN)
    assert not of(written(timeline, tmp_path), "X")


def test_rows_have_names(tmp_path: Path) -> None:
    timeline = Timeline("algo-1")
    timeline.process(77, "worker", Role.WORKER, time.monotonic() - 1.5, 3, [(1.0, 15), (2.0, 9)])
    events = written(timeline, tmp_path)
    (span,) = of(events, "X")
    assert (span["tid"], span["name"]) == (77, "worker")
    assert span["args"] == {"role": "worker", "exit status": 3}
    assert span["dur"] >= 1_500_000
    assert span["cat"] == "process", "the life of a process is no phase"
    names = {e["tid"]: e["args"]["name"] for e in of(events, "M") if e["name"] == "thread_name"}
    assert names == {os.getpid(): "job", 77: "worker"}
    (host,) = [e["args"]["name"] for e in of(events, "M") if e["name"] == "process_name"]
    assert host == "algo-1"
    signals = [(e["name"], e["tid"], e["s"]) for e in of(events, "i")]
    assert signals == [("SIGTERM", 77, "t"), ("SIGKILL", 77, "t")]


def test_hosts_in_one_view_do_not_meet(tmp_path: Path) -> None:
    """In containers every entrypoint is process 1."""
    ids = {written(Timeline(f"algo-{i}"), tmp_path)[0]["pid"] for i in range(1, 101)}
    assert len(ids) == 100


def test_counters_hold_until_the_next_and_end_with_the_process(tmp_path: Path) -> None:
    timeline, started = Timeline("algo-1"), time.monotonic() - 3.0
    track = Track(started)
    track.add(started + 1.0, Usage(cpu=0.5, memory=10_000_000))
    track.add(started + 2.0, Usage(cpu=2.5, memory=30_000_000))
    timeline.process(77, "server", Role.SERVER, started, 0, track=track)
    counters = of(written(timeline, tmp_path), "C")
    cpu = [event for event in counters if event["name"] == "server CPU"]
    memory = [event for event in counters if event["name"] == "server memory"]
    assert [event["args"] for event in cpu] == [{"% of a core": v} for v in (50.0, 200.0, 0.0)]
    assert [event["args"] for event in memory] == [{"MB": v} for v in (10.0, 30.0, 0.0)]
    assert cpu[1]["ts"] == memory[0]["ts"], "a load is that of the time which follows"
    assert cpu[2]["ts"] == memory[2]["ts"]


def test_a_failure_is_told_where_it_happened_and_for_the_job(tmp_path: Path) -> None:
    timeline, when = Timeline("algo-1"), time.monotonic()
    timeline.failure(FAILURE, when, 77)
    job, process = of(written(timeline, tmp_path), "i")
    assert (job["tid"], job["s"], process["tid"], process["s"]) == (os.getpid(), "p", 77, "t")
    assert job["args"] == process["args"] == FAILURE.to_json()
    assert job["ts"] == process["ts"]


def test_times_are_wall_clock_microseconds(tmp_path: Path) -> None:
    """So that the timelines of several hosts can be laid over each other."""
    before = time.time()
    timeline = Timeline("algo-1")
    timeline.instant("signal", "SIGTERM", "received")
    after = time.time()
    (instant,) = of(written(timeline, tmp_path), "i")
    assert (before - 1) * 1e6 <= instant["ts"] <= (after + 1) * 1e6
    assert instant["args"] == {"detail": "received"}


NUMBERS = ("ts", "pid", "tid")


def test_every_event_has_what_the_format_asks_for(tmp_path: Path) -> None:
    """As "Trace Event Format" lists it: by phase, names and types."""
    timeline, track = Timeline("algo-1"), Track(time.monotonic())
    track.add(time.monotonic() + 1, Usage(1.0, 1, 1))
    timeline.phase(HostPhase.TRAIN)
    timeline.phase(None)
    timeline.process(77, "worker", Role.WORKER, time.monotonic(), None, [(1.0, 9)], track)
    timeline.failure(FAILURE, time.monotonic(), 77)
    for event in written(timeline, tmp_path):
        assert all(type(event[key]) is int for key in NUMBERS)
        assert isinstance(event["name"], str) and isinstance(event["args"], dict)
        if event["ph"] == "X":
            assert type(event["dur"]) is int and event["dur"] >= 0
        elif event["ph"] == "i":
            assert event["s"] in ("p", "t")
        elif event["ph"] == "C":
            assert all(type(value) in (int, float) for value in event["args"].values())
        else:
            assert event["ph"] == "M"
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")


def test_the_file_says_whose_it_is_and_how_the_job_ended(tmp_path: Path) -> None:
    timeline = Timeline("algo-1")
    timeline.write(str(tmp_path), Verdict(Outcome.FAILURE, FAILURE), {"exit status": 1})
    other = whole(timeline, tmp_path)["otherData"]
    assert other.pop("version")
    assert other == {
        "program": "sagemaker-mxnet-training",
        "host": "algo-1",
        "exit status": 1,
        "outcome": "failure",
        "failure": FAILURE.to_json(),
        "restarts": 0,
        "first_cause": "",
        "saved": False,
    }
