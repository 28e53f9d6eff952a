"""The control channel: one leader and N simulated followers, all on one core.

The followers are real ``LeaderConnection`` objects over loopback TCP, in one second process; both
processes are pinned to the same core. Measured: seconds until all have joined, seconds until a
failure of the largest size has reached all, the leader's CPU time for both, its CPU share while
nothing happens, and the memory that it took.
"""

import json
import os
import resource
import selectors
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any, Callable, Dict, List

from sagemaker_mxnet_toolkit.failure import (
    DETAIL_LIMIT,
    REASON_LIMIT,
    Failure,
    FailureKind,
    Outcome,
    Role,
)
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster.events import End, Verdict
from sagemaker_mxnet_training.config.configuration import resolve
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.control.leader_connection import LeaderConnection
from sagemaker_mxnet_training.control.members import MemberConnections

IDLE_SECONDS = 7.0


def job(hosts: List[str], port: int = 0) -> Job:
    """Return the job as its first host sees it."""
    resolved = resolve({"SM_HOSTS": json.dumps(hosts), "SM_CURRENT_HOST": hosts[0]}).job
    addresses = {hosts[0]: "127.0.0.1"}
    settings = replace(
        resolved.settings, host_addresses=addresses, control_port=port, peer_timeout=15.0
    )
    return replace(resolved, settings=settings)


def turn(selector: selectors.BaseSelector, wake: float) -> None:
    """Wait for the next thing to do, and do it."""
    for key, mask in selector.select(max(0.0, wake - time.monotonic())):
        key.data(mask)


def follow(port: int, hosts: List[str]) -> None:
    """Be all followers; print when they begin, when all have joined and when all have heard."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, len(hosts) + 100)), hard))
    selector = selectors.DefaultSelector()
    joined, heard, lost = [1], [1], [0]  # the first host itself has joined and knows

    def count(counter: List[int], name: str) -> Callable[[Any], None]:
        def on_call(argument: Any) -> None:
            counter[0] += 1
            if counter[0] == len(hosts):
                print(json.dumps({name: time.monotonic()}), flush=True)

        return on_call

    log, seen = Log(hosts[0]), job(hosts, port)
    print(json.dumps({"began": time.monotonic()}), flush=True)
    made = [
        LeaderConnection(
            replace(seen, current_host=host),
            log,
            selector,
            count(joined, "joined"),
            count(heard, "heard"),
            count(lost, "lost"),
            count(lost, "refused"),
        )
        for host in hosts[1:]
    ]
    due = 0.0
    while not lost[0]:
        now = time.monotonic()
        if now >= due:
            due = min(follower.tick(now) for follower in made)
        turn(selector, due)


def resident() -> int:
    """Return the bytes of memory that this process has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(count: int) -> Dict[str, float]:
    """Return the figures for one leader and ``count`` followers."""
    hosts = [f"algo-{number}" for number in range(1, count + 2)]
    selector = selectors.DefaultSelector()
    joined: List[str] = []

    def on_lost(host: str, reason: str, dropped: bool) -> None:
        raise SystemExit(f"lost {host}: {reason}")

    def ignore(*arguments: Any) -> None:
        pass

    memory, cpu = resident(), time.process_time()
    leader = MemberConnections(
        job(hosts),
        Log(hosts[0]),
        selector,
        lambda host, address, own: joined.append(host),
        on_lost,
        ignore,
        ignore,
    )
    port = leader.listening.rpartition(":")[2]
    command = [sys.executable, "-m", "benchmarks.control", "--follow"]
    followers = subprocess.Popen([*command, port, *hosts], stdout=subprocess.PIPE)
    assert followers.stdout is not None
    reports: Dict[str, float] = {}
    buffer = b""

    def on_report(mask: int) -> None:
        nonlocal buffer
        buffer += os.read(followers.stdout.fileno(), 4096)
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            reports.update(json.loads(line))

    selector.register(followers.stdout, selectors.EVENT_READ, on_report)

    def until(done: Callable[[], Any], bound: float = 120.0) -> None:
        limit = time.monotonic() + bound
        while not done():
            if time.monotonic() > limit:
                raise SystemExit(f"{count} followers: {len(joined)} joined, reports: {reports}")
            turn(selector, min(leader.tick(time.monotonic()), limit))

    try:
        until(lambda: len(joined) == count and "joined" in reports)
        join_cpu = time.process_time() - cpu
        failure = Failure(
            "algo-2",
            Role.WORKER,
            "x" * REASON_LIMIT,
            FailureKind.EXCEPTION,
            1,
            "line of a traceback\n" * DETAIL_LIMIT,
        )
        cpu, start = time.process_time(), time.monotonic()
        leader.send(End(Verdict(Outcome.FAILURE, failure.bounded())))
        until(lambda: "heard" in reports)
        broadcast_cpu = time.process_time() - cpu
        cpu, idle = time.process_time(), time.monotonic()
        until(lambda: time.monotonic() >= idle + IDLE_SECONDS)
        idle_share = (time.process_time() - cpu) / (time.monotonic() - idle)
        return {
            "followers": count,
            "join_s": reports["joined"] - reports["began"],
            "broadcast_s": reports["heard"] - start,
            "leader_cpu_join_s": join_cpu,
            "leader_cpu_broadcast_s": broadcast_cpu,
            "leader_idle_cpu_percent": 100 * idle_share,
            "leader_memory_mb": (resident() - memory) / 1e6,
        }
    finally:
        selector.unregister(followers.stdout)
        leader.close()
        selector.close()
        followers.communicate()


def measured(count: int) -> Dict[str, float]:
    """Return what ``measure`` does, in a process of its own on one core."""
    command = [sys.executable, "-m", "benchmarks.control", "--measure", str(count)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if sys.argv[1] == "--follow":
        follow(int(sys.argv[2]), sys.argv[3:])
    else:
        print(json.dumps(measure(int(sys.argv[2]))))
