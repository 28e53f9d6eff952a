"""A process of a running job is killed: the job resumes from its last checkpoint.

The script waits at a moment (``moments``) until the test has done what it does. ``SURVIVAL=full``
in the environment runs the whole matrix; without it the most telling cells run.
"""

import contextlib
import json
import os
import re
import signal
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import pytest

from sagemaker_mxnet_training.checkpoints import catalog
from tests.endings.conftest import needs_memory_limit
from tests.support.jobs import IN_GROUP, Cluster, Ended, Host, eventually, job

from .conftest import Whole
from .moments import held_script
from .runs import FULL, Env, matrix
from .scripts import SCRIPTS

STEP = r"\bstep (\d+) (\S+) \.$"
"""MXNet writes a line in several pieces, and the script's line may follow one of them."""
ENV = {"KVSTORE": "dist_sync", "OPTIMIZER": "drifting", "PAUSE": "0"}


def start(path: Path, kind: str, hosts: int, env: Env, **options: Any) -> Any:
    """Start a job, whose kvstore has its optimizer on the servers unless ``env`` says otherwise."""
    env = {**ENV, **env}
    options.setdefault("body", held_script(kind))
    return job(path, hosts=hosts, parameter_server="dist" in env["KVSTORE"], env=env, **options)


def pid(host: Host, role: str, attempt: int) -> int:
    """Return the process id of a role in an attempt."""
    found: List[str] = []

    def look() -> bool:
        found[:] = re.findall(rf"{host.name} {role}: started \(process (\d+)", host.output)
        return len(found) >= attempt

    eventually(look, f"attempt {attempt} of {role} on {host.name}")
    return int(found[attempt - 1])


def at(cluster: Cluster, place: str) -> int:
    """Wait until the script waits at a place; return the attempt."""
    attempt, _, name = place.split(":")
    cluster[int(name[-1])].wait_for(rf"^holding at {place} \.$")
    return int(attempt)


def strike(cluster: Cluster, place: str, role: str, number: int = signal.SIGKILL) -> None:
    """Send a signal to a role, on the last host that has one, while the script waits at a place."""
    attempt = at(cluster, place)
    host = cluster[1] if role == "scheduler" else cluster.hosts[-1]
    os.kill(pid(host, role, attempt), number)


def check(whole: Sequence[Ended], ends: Sequence[Ended], causes: Sequence[str]) -> None:
    """Compare a job that was interrupted with one that was not; its log names the causes."""
    for one, other in zip(whole, ends):
        assert (other.status, other.success, other.failure) == (0, True, None), other.output
        for number, cause in enumerate(causes, 2):
            assert re.search(rf"{cause}; restarting \(attempt {number}\)", other.output), (
                other.output
            )
        assert f"restarting (attempt {len(causes) + 2})" not in other.output
        expected = set(re.findall(STEP, one.output, re.MULTILINE))
        assert set(re.findall(STEP, other.output, re.MULTILINE)) == expected
        assert last("weights", other) == last("weights", one)
    assert last("statistics", ends[0]) == last("statistics", whole[0])


def last(what: str, end: Ended) -> Optional[str]:
    found = re.findall(rf"^{what} (\S+) \.$", end.output, re.MULTILINE)
    return found[-1] if found else None


def resumed(end: Ended) -> List[int]:
    """Return the steps that the attempts after the first went on from."""
    return [int(step) for step in re.findall(r"resuming from \S+ step (\d+),", end.output)]


def timeline(cluster: Cluster, number: int) -> List[Dict[str, Any]]:
    path = cluster[number].base / "output" / "data" / f"timeline-algo-{number}.json"
    events: List[Dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


def killed(host: int, role: str) -> str:
    return re.escape(f"algo-{host}: {role} failed: killed by SIGKILL (exit status 137)")


def place_of(role: str, hosts: int) -> int:
    return 1 if role == "scheduler" else hosts


only_full = pytest.mark.skipif(not FULL, reason="a part of the full matrix")
MIDDLE = "1:step 6:algo-1"
ROLES = ("worker", "server", "scheduler")
SHAPES = [(kind, hosts) for kind in SCRIPTS for hosts in (1, 2)]
EACH = [(role, *shape) for role in ROLES for shape in SHAPES]
MOMENTS = {
    "first step": "1:step 1:algo-1",
    "mid-epoch": MIDDLE,
    "write": "1:write 2:algo-1",
}


@pytest.mark.parametrize(
    "role, moment, kind, hosts",
    matrix(
        [(role, moment, *shape) for role in ROLES for moment in MOMENTS for shape in SHAPES],
        [("server", "mid-epoch", "gluon", 2), ("worker", "write", "module", 1)],
    ),
)
def test_killed_once(
    tmp_path: Path, whole: Whole, role: str, moment: str, kind: str, hosts: int
) -> None:
    place = MOMENTS[moment]
    with start(tmp_path, kind, hosts, {"HOLDS": place}) as cluster:
        strike(cluster, place, role)
        ends = cluster.ended()
        events = timeline(cluster, hosts)
    cause = killed(place_of(role, hosts), role)
    check(whole(kind, hosts, ENV), ends, [cause])
    assert resumed(ends[0]) == {"first step": [], "mid-epoch": [4]}.get(moment, resumed(ends[0]))
    [restart] = [each for each in events if each.get("cat") == "restart"]
    assert restart["name"] == "attempt 2"
    assert re.fullmatch(cause, restart["args"]["detail"])


@pytest.mark.parametrize("role, kind, hosts", matrix(EACH, [("server", "gluon", 1)]))
def test_killed_while_it_restores(
    tmp_path: Path, whole: Whole, role: str, kind: str, hosts: int
) -> None:
    first, second = MIDDLE, "2:restore:algo-1"
    earlier = "scheduler" if role == "worker" else "worker"
    with start(tmp_path, kind, hosts, {"HOLDS": f"{first};{second}"}) as cluster:
        strike(cluster, first, earlier)
        strike(cluster, second, role)
        ends = cluster.ended()
    causes = [killed(place_of(each, hosts), each) for each in (earlier, role)]
    check(whole(kind, hosts, ENV), ends, causes)
    assert resumed(ends[0])[-1] == 4


@pytest.mark.parametrize("role, kind, hosts", matrix(EACH, []))
def test_killed_twice(tmp_path: Path, whole: Whole, role: str, kind: str, hosts: int) -> None:
    first, second = MIDDLE, "2:step 14:algo-1"
    with start(tmp_path, kind, hosts, {"HOLDS": f"{first};{second}"}) as cluster:
        strike(cluster, first, role)
        strike(cluster, second, role)
        ends = cluster.ended()
    check(whole(kind, hosts, ENV), ends, [killed(place_of(role, hosts), role)] * 2)
    assert resumed(ends[0]) == [4, 12]


@pytest.mark.parametrize("role, kind, hosts", matrix(EACH, [("worker", "gluon", 2)]))
def test_killed_at_the_end(tmp_path: Path, whole: Whole, role: str, kind: str, hosts: int) -> None:
    place = f"1:end:algo-{hosts}"
    with start(tmp_path, kind, hosts, {"HOLDS": place}) as cluster:
        cluster.wait_for(r"^end \.$")
        strike(cluster, place, role)
        ends = cluster.ended()
    check(whole(kind, hosts, ENV), ends, [killed(place_of(role, hosts), role)])
    assert resumed(ends[0]) == [48 // hosts]


@pytest.mark.parametrize("kind", matrix(list(SCRIPTS), []))
def test_without_a_kvstore(tmp_path: Path, whole: Whole, kind: str) -> None:
    env = {"KVSTORE": "device", "OPTIMIZER": "adam"}
    first, second = MIDDLE, "2:restore:algo-1"
    with start(tmp_path, kind, 1, {**env, "HOLDS": f"{first};{second}"}) as cluster:
        strike(cluster, first, "worker")
        strike(cluster, second, "worker", signal.SIGSEGV)
        ends = cluster.ended()
    check(
        whole(kind, 1, {**ENV, **env}),
        ends,
        [killed(1, "worker"), "worker failed: killed by SIGSEGV .*"],
    )


# Other ways to fail.


@only_full
def test_a_frozen_server(tmp_path: Path, whole: Whole) -> None:
    with start(tmp_path, "gluon", 2, {"HOLDS": MIDDLE}) as cluster:
        strike(cluster, MIDDLE, "server", signal.SIGSTOP)
        ends = cluster.ended()
    check(whole("gluon", 2, ENV), ends, [r"algo-2: server failed: frozen: .*\(SIGSTOP\) for \d+ s"])


RAISING = """
        if os.environ["SAGEMAKER_MXNET_RESTART_COUNT"] == "0" and self.calls[index] == 6:
            raise RuntimeError("odd")
"""


@only_full
def test_an_optimizer_that_raises_on_a_server(tmp_path: Path, whole: Whole) -> None:
    body = held_script("module")
    counted = "self.calls[index] = self.calls.get(index, 0) + 1"
    body = body.replace(counted, counted + RAISING)
    with start(tmp_path, "module", 2, {}, body=body) as cluster:
        ends = cluster.ended()
    check(whole("module", 2, ENV), ends, [r"server failed: RuntimeError: odd .*"])


@only_full
def test_an_exit_status(tmp_path: Path, whole: Whole) -> None:
    env = {"FAILS": "1:step 6:algo-2", "FAILS_BY": "sys.exit(3)"}
    with start(tmp_path, "gluon", 2, env) as cluster:
        ends = cluster.ended()
    check(whole("gluon", 2, ENV), ends, [r"algo-2: worker failed: .*exit status 3\)?"])


def failed(end: Ended, cause: str, restarts: int) -> None:
    """Check that a job failed, and after how many restarts."""
    assert (end.success, end.status == 0) == (False, False), end.output
    assert re.match(cause, end.cause)
    assert f"restarting (attempt {restarts + 1})" in end.output
    assert f"restarting (attempt {restarts + 2})" not in end.output
    times = "1 restart" if restarts == 1 else f"{restarts} restarts"
    assert f"after {times}; the first: " in str(end.failure)


@pytest.mark.parametrize("every", matrix(["4", "1000"], ["4"]))
def test_repeated_exception_ends_the_job(tmp_path: Path, every: str) -> None:
    env = {"FAILS": "*:step 6:algo-1", "FAILS_BY": "1 / 0", "KVSTORE": "device", "EVERY": every}
    with start(tmp_path, "gluon", 1, env) as cluster:
        [end] = cluster.ended()
    failed(end, "algo-1: worker failed: ZeroDivisionError: division by zero", 1)
    assert resumed(end) == ([4] if every == "4" else [])


@needs_memory_limit
@only_full
def test_out_of_memory_again_and_again_is_the_end(
    tmp_path: Path, limited: Callable[[int], str]
) -> None:
    env = {"FAILS": "*:step 6:algo-1", "FAILS_BY": "eat()", "KVSTORE": "device"}
    env["GROUP"] = limited(600)
    with start(tmp_path, "gluon", 1, env, command=("-c", IN_GROUP)) as cluster:
        [end] = cluster.ended()
    failed(end, "algo-1: worker failed: out of memory: the container's limit of 600 MiB", 1)


COUNTING = """
count = os.environ["SAGEMAKER_MXNET_RESTART_COUNT"]
say("count", count, ".")
if count < os.environ["GOOD"]:
    with open(os.environ["SAGEMAKER_BASE_DIR"] + "/output/failure", "w") as file:
        file.write("the script's own words")
    raise ValueError("odd " + count)
"""


def count(path: Path, good: int, hosts: int = 1, **settings: int) -> Any:
    env = {f"SAGEMAKER_MXNET_{name.upper()}": str(value) for name, value in settings.items()}
    return job(path, COUNTING, hosts, env={**env, "GOOD": str(good)})


def test_a_script_without_checkpoints_begins_again_if_asked_to(tmp_path: Path) -> None:
    with count(tmp_path, good=2, hosts=2, max_restarts=2) as cluster:
        ends = cluster.ended()
    for end in ends:
        assert (end.status, end.success, end.failure) == (0, True, None), end.output
        assert re.findall(r"^count (\d) \.$", end.output, re.MULTILINE) == ["0", "1", "2"]


def test_restarts_have_a_limit(tmp_path: Path) -> None:
    with count(tmp_path, good=9, max_restarts=1) as cluster:
        [end] = cluster.ended()
    assert end.failure is not None
    assert end.failure.strip() == "the script's own words"
    assert "cause: algo-1: worker failed: ValueError: odd 1" in end.output
    assert "restarting (attempt 2)" in end.output
    assert "restarting (attempt 3)" not in end.output


def test_without_checkpoints_nothing_begins_again_by_itself(tmp_path: Path) -> None:
    with count(tmp_path, good=9) as cluster:
        [end] = cluster.ended()
    assert "restarting (attempt 2)" not in end.output


@pytest.mark.parametrize("whole_ones", matrix([0, 1], [1]))
def test_damaged_checkpoints(tmp_path: Path, whole: Whole, whole_ones: int) -> None:
    place = "1:step 10:algo-1"
    with start(tmp_path, "gluon", 1, {"HOLDS": place}) as cluster:
        at(cluster, place)
        directory = cluster[1].base / "checkpoints"
        damaged = catalog.listing(str(directory))[whole_ones:]
        for entry in damaged:
            path = directory / entry.name
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        strike(cluster, place, "server")
        ends = cluster.ended()
    check(whole("gluon", 1, ENV), ends, [killed(1, "server")])
    assert resumed(ends[0]) == ([4] if whole_ones else [])
    for entry in damaged:
        assert f"WARNING: skipping damaged {entry.name}: " in ends[0].output


# Stops.


def stopped(ends: Sequence[Ended]) -> None:
    for end in ends:
        assert "the job was STOPPED" in end.output, end.output
        assert (end.success, end.failure) == (False, None)


def release(*hosts: Host) -> None:
    for host in hosts:
        (host.base / "release").touch()


def test_stop_is_immediate_and_the_next_job_resumes(tmp_path: Path, whole: Whole) -> None:
    """Well within ``stop_grace``, which is longer than what counts as hung."""
    env = {"DROPOUT": "0"}
    with start(tmp_path, "gluon", 2, {**env, "HOLDS": MIDDLE}) as cluster:
        at(cluster, MIDDLE)
        cluster[2].kill("entrypoint", signal.SIGTERM)
        cluster.wait_for("stopping the job: SIGTERM to algo-2")
        release(*cluster.hosts)
        ends = cluster.ended()
    stopped(ends)
    assert [end.status for end in ends] == [0, 0]
    assert "stopping after step 6" in ends[0].output
    with start(tmp_path, "gluon", 2, env) as cluster:
        again = cluster.ended()
    assert resumed(again[0]) == [6]
    for one, other in zip(whole("gluon", 2, {**ENV, **env}), again):
        assert last("weights", other) == last("weights", one)


def hold_choice(cluster: Cluster) -> None:
    """Block the choice of a checkpoint: opening a pipe without a writer blocks."""
    os.mkfifo(cluster[1].base / "checkpoints" / "checkpoint-999999-step-1.zip")


PHASES = {
    "clearing": r"restarting \(attempt 2\)",
    "choosing": r"(?s)restarting \(attempt 2\).*algo-1 worker: ended with SIGKILL",
    "starting": r"(?s)algo-1 worker: started .*algo-1 worker: started ",
    "importing": "2:import:algo-1",
    "restoring": "2:restore:algo-1",
    "first step": "2:step 5:algo-1",
}
"""The line that a host prints then, or where the script waits."""


@pytest.mark.parametrize(
    "phase, signals, hosts",
    matrix(
        [(phase, signals, hosts) for phase in PHASES for signals in (1, 2) for hosts in (1, 2)],
        [("restoring", 1, 2)],
    ),
)
def test_a_stop_during_a_restart(tmp_path: Path, phase: str, signals: int, hosts: int) -> None:
    then = PHASES[phase]
    held = then.startswith("2:")
    env = {"HOLDS": f"{MIDDLE};{then if held else ''}"}
    if signals == 2:  # the other host's script may wait for servers that are gone
        env["SAGEMAKER_MXNET_STOP_GRACE"] = "5"
    with start(tmp_path, "gluon", hosts, env) as cluster:
        at(cluster, MIDDLE)
        if phase == "choosing":
            hold_choice(cluster)
        strike(cluster, MIDDLE, "server")
        if held:
            at(cluster, then)
        else:
            cluster[1].wait_for(then)
        asked = cluster.hosts[-1]
        for number in range(1, signals + 1):
            # Where nothing runs that has to be waited for, the job is over before the second.
            with contextlib.suppress(ProcessLookupError):
                asked.kill("entrypoint", signal.SIGTERM)
            again = " again" * (number - 1)
            asked.wait_for(rf"entrypoint: (received SIGTERM{again}|the job )")
        release(*(host for host in cluster.hosts if signals == 1 or host is not asked))
        ends = cluster.ended()
    stopped(ends)
    statuses = {end.status for end in ends}
    if signals == 2 or phase in ("starting", "importing"):
        # Of SIGKILL where a host is asked twice, of SIGTERM where its script has no handler yet.
        assert statuses <= {0, 137, 143}
    else:
        assert len(statuses) == 1, [end.output for end in ends]


# Hosts that are lost. What follows where something starts them again is in ``test_next_job``.


@pytest.mark.parametrize("number", matrix([1, 2], [1]))
def test_lost_host_ends_the_job(tmp_path: Path, number: int) -> None:
    with start(tmp_path, "gluon", 2, {"HOLDS": MIDDLE}) as cluster:
        at(cluster, MIDDLE)
        cluster.lose(number)
        end = cluster[3 - number].ended()
    assert re.match(rf"algo-{number}: entrypoint failed: lost: ", end.cause)
    assert "restarting (attempt 2)" not in end.output
