"""What breaks under a server: workers, models, scripts, the server itself, and its stop."""

import concurrent.futures
import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Iterator, List

import psutil
import pytest

from tests.support.jobs import eventually, free_port
from tests.support.real_server import SCRIPT, Served, serving, write_model


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = write_model(tmp_path_factory.mktemp("faults") / "model")
    with serving(model, "--workers", "2") as server:
        yield server.healthy()


@pytest.fixture(autouse=True)
def _every_test_finds_it_healthy(request: pytest.FixtureRequest) -> None:
    if "served" in request.fixturenames:
        request.getfixturevalue("served").healthy()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("word", [b"exit", b"crash"])
def test_script_that_exits_fails_only_its_request(served: Served, word: bytes) -> None:
    """Defect 12 of the peer: the next request waits for the model to be loaded again."""
    loaded = served.invoke(b"loaded").body
    answer = served.invoke(word, **{"X-Request-Id": f"over-{word.decode()}"})
    assert answer.status == 500
    assert b"died while processing this request" in answer.body
    served.wait_for_log(f"while processing request over-{word.decode()}")
    assert served.healthy().invoke(b"loaded").body == loaded


def test_child_of_a_dead_worker_does_not_keep_its_requests(served: Served) -> None:
    """The child holds the worker's end of the connection open, which tells of no end then."""
    answer = served.invoke(b"leave 600")
    assert (answer.status, b"died while processing this request" in answer.body) == (500, True)
    assert served.healthy().invoke(b"next").body == b"next"


POOL = """
import concurrent.futures, os

def model_fn(model_dir):
    pool = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="mine")
    list(pool.map(abs, range(100)))
    if "SHUT_DOWN" in os.environ:
        pool.shutdown()
        pool = None
    return pool, os.getpid()

def transform_fn(model, body, content_type, accept):
    pool, loaded = model
    return str(pool.submit(lambda: loaded).result() if pool else loaded)
"""


@pytest.mark.parametrize("variables", [{}, {"SHUT_DOWN": "1"}])
def test_threads_that_the_script_starts(tmp_path: Path, variables: "dict[str, str]") -> None:
    """A worker that is forked from a process with a pool would wait for its threads forever."""
    stay = not variables
    script = write_model(tmp_path / "model", POOL)
    with serving(script, "--workers", "2", OMP_NUM_THREADS=1, **variables) as served:
        assert (int(served.healthy().invoke(b"").body) in served.workers()) is stay
        line = served.wait_for_log("workers: 2 that ")
        assert ("2 that each load the model" in line) is stay
        workers = served.workers()
        served.model_process().kill()
        eventually(lambda: all(map(gone, workers)), "the end of its workers")
        assert (int(served.healthy().invoke(b"").body) in served.workers()) is stay
        if stay:
            served.wait_for_log("the script has started threads (mine_0, mine_1)")
        assert served.log.count("the script has started threads") == stay


OPENMP = """
import ctypes, mxnet as mx

def model_fn(model_dir):
    ctypes.CDLL("libgomp.so.1").omp_set_num_threads(4)
    net = mx.gluon.nn.Dense(512)
    net.initialize()
    net(mx.nd.ones((64, 2048))).wait_to_read()
    return net
"""


def test_threads_of_openmp_are_counted(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", OPENMP)
    code = (
        "from sagemaker_mxnet_serving.inference import ModelSettings\n"
        "from sagemaker_mxnet_serving.worker import worker_process\n"
        f"model = worker_process.load(ModelSettings(model_dir={str(model)!r}))\n"
        "print(model.started_threads())"
    )
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "MXNET_ENGINE_TYPE": "NaiveEngine"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert "such as OpenMP's" in done.stdout, done.stderr


NO_PROCESSES = """
import errno, os

fork = os.fork

def limited():
    if os.path.exists(os.environ["MARKER"]):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    return fork()

os.fork = limited
"""


def test_lack_of_processes_is_temporary(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    model = write_model(tmp_path / "model", NO_PROCESSES + SCRIPT)
    with serving(model, "--workers", "1", OMP_NUM_THREADS=1, MARKER=marker) as served:
        served.healthy()
        marker.touch()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(served.invoke, b"exit")
            served.wait_for_log("limit on processes")
            assert served.ping() == 503
            marker.unlink()
            assert answer.result().status == 500, "it ends its second worker too"
        assert served.healthy().invoke(b"next").body == b"next"


def test_lack_of_processes_at_the_start(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", NO_PROCESSES + SCRIPT)
    with serving(model, "--workers", "1", OMP_NUM_THREADS=1, MARKER=tmp_path) as served:
        assert served.ended() == 1
        assert "a worker cannot be started: the limit on processes" in served.lines[-1]


FORKS = """
import os

def model_fn(model_dir):
    if os.fork() == 0 and os.environ.get("CHILD_FAILS"):
        raise RuntimeError("in the child of model_fn")
    return os.getpid()

def transform_fn(model, body, content_type, accept):
    if os.fork() == 0 and body.endswith(b"0"):
        raise SystemExit("in the child")
    return bytes(body)
"""


@pytest.mark.parametrize(
    "variables",
    [
        {"OMP_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "1", "CHILD_FAILS": "1"},
        {"SAGEMAKER_MXNET_SERVING_LOAD_IN_WORKERS": "true", "CHILD_FAILS": "1"},
    ],
)
def test_script_that_forks_and_returns_twice(tmp_path: Path, variables: "dict[str, str]") -> None:
    """The child would answer for the worker, or load for the model process."""
    with serving(write_model(tmp_path / "model", FORKS), "--workers", "1", **variables) as served:
        served.healthy()
        sent = [b"%d" % number for number in range(40)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(served.invoke, sent))
        assert [(each.status, each.body) for each in answers] == [(200, body) for body in sent]
        served.wait_for_log("ending the child")
        assert "starting another one" not in served.log


def test_request_of_a_killed_worker_is_retried(served: Served, tmp_path: Path) -> None:
    answer = served.invoke(b"once " + os.fsencode(tmp_path / "tried"))
    assert (answer.status, answer.body) == (200, b"twice")


def test_request_survives_a_worker_that_had_not_read_it(served: Served, tmp_path: Path) -> None:
    """Of workers that are killed together, the front loses one after another."""
    first = int(served.invoke(b"worker").body)
    second = eventually(
        lambda: next((pid for pid in served.workers() if pid != first and not gone(pid)), None),
        "another worker",
    )
    os.kill(second, signal.SIGSTOP)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.invoke, b"once " + os.fsencode(tmp_path / "tried"))
        served.wait_for_log(f"worker {first} ended with status 7 while processing request")
        with contextlib.suppress(ProcessLookupError):  # the server kills it after 2 s
            os.kill(second, signal.SIGKILL)
        assert (answer.result().status, answer.result().body) == (200, b"twice")


def test_overdue_worker_is_killed_and_returns_504(tmp_path: Path) -> None:
    variables = {"SAGEMAKER_MODEL_SERVER_TIMEOUT": "2"}
    with serving(write_model(tmp_path / "model"), "--workers", "1", **variables) as served:
        answer = served.healthy().invoke(b"hang")
        assert answer.status == 504
        assert b"longer than the server allows" in answer.body
        served.wait_for_log("takes longer than 2 s for a request")
        assert served.healthy().invoke(b"next").body == b"next"


def test_stopped_worker_is_killed_and_its_request_answered(served: Served) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.invoke, b"sleep 0.5")
        for pid in served.workers():
            os.kill(pid, signal.SIGSTOP)
        assert answer.result().status == 200
    served.wait_for_log("was stopped by a signal")


@pytest.mark.parametrize("victims", ["workers", "model process"])
def test_kills_under_load_lose_no_request(served: Served, victims: str) -> None:
    """All die at once: no request is lost because it meets one dead worker after another."""
    stop = threading.Event()
    answers: List[List[int]] = [[] for _ in range(4)]

    def load(statuses: List[int]) -> None:
        while not stop.is_set():
            statuses.append(served.invoke(b"worker").status)

    threads = [threading.Thread(target=load, args=(each,)) for each in answers]
    for thread in threads:
        thread.start()
    for _ in range(4):
        workers = served.workers()
        for pid in workers if victims == "workers" else [served.model_process().pid]:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda pids=workers: all(map(gone, pids)), "the end of the workers")
        # Two answers to each client: no request has met more than this round of kills.
        before = [len(each) for each in answers]
        eventually(
            lambda before=before: all(len(a) >= n + 2 for a, n in zip(answers, before)),
            "answers after it",
        )
    stop.set()
    for thread in threads:
        thread.join()
    assert {status for each in answers for status in each} == {200}


def test_dead_model_process_is_restarted_without_losing_requests(served: Served) -> None:
    first = served.model_process()
    workers = served.workers()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(served.invoke, b"sleep 0.3") for _ in range(4)]
        first.kill()
        assert {each.result().status for each in answers} == {200}
    eventually(lambda: all(map(gone, workers)), "the end of its workers")
    assert served.healthy().model_process().pid != first.pid


def test_ping_needs_no_worker(served: Served) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(served.invoke, b"sleep 0.5") for _ in range(8)]

        def answered() -> bool:
            assert served.ask("GET", "/ping", timeout=2).status == 200
            return all(each.done() for each in answers)

        eventually(answered, "all answers")
        assert {each.result().status for each in answers} == {200}


def test_sigterm_under_load_loses_no_accepted_request(tmp_path: Path) -> None:
    """Defect 9 of the peer: SIGTERM resets the requests that are in progress."""
    port, gate = free_port(), tmp_path / "gate"
    variables = {"SAGEMAKER_MXNET_SERVING_METRICS_PORT": port}
    with serving(write_model(tmp_path / "model"), "--workers", "2", **variables) as served:
        served.healthy()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(served.invoke, b"wait " + os.fsencode(gate)) for _ in range(8)]
            queued = "sagemaker_mxnet_serving_queue_length 6.0"
            eventually(lambda: queued in served.metrics(port), "two predictions, six in the queue")
            half = served.connect()
            half.sendall(
                b"POST /invocations HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
            )
            assert half.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            served.process.terminate()
            served.wait_for_log("stopping; requests in progress")
            assert served.ping() == 503
            refused = served.invoke(b"late")
            assert (refused.status, b"stopping" in refused.body) == (503, True)
            half.sendall(b"half!")
            gate.touch()
            assert half.recv(1000).startswith(b"HTTP/1.1 200 ")
            half.close()
            assert [each.result().status for each in answers] == [200] * 8
        assert served.ended() == 0


def test_response_that_is_being_read_during_a_stop(tmp_path: Path) -> None:
    size = 20_000_000
    request = b"POST /invocations HTTP/1.1\r\nX-Request-Id: %s\r\nContent-Length: 13\r\n\r\nlong %d"
    with serving(write_model(tmp_path / "model"), "--workers", "1") as served:
        served.healthy()
        with served.connect() as gone_midway:
            gone_midway.sendall(request % (b"gone", size))
            assert gone_midway.recv(1000).startswith(b"HTTP/1.1 200 ")
        eventually(lambda: re.search(r" 499 .* gone$", served.log, re.M), "its line in the log")
        with served.connect() as client:
            client.sendall(request % (b"slow", size))
            taken = client.recv(1000)
            served.process.terminate()
            served.wait_for_log("requests in progress: 1")
            until = time.monotonic() + 3  # longer than what is only flushed has
            while time.monotonic() < until:
                taken += client.recv(1000)
                time.sleep(0.01)
            with client.makefile("rb") as rest:
                taken += rest.read()
        assert len(taken.partition(b"\r\n\r\n")[2]) == size
        assert served.ended() == 0
        assert re.search(rf" 200 .*{size}.* slow$", served.log, re.M)


def test_hangup_stops_the_server(tmp_path: Path) -> None:
    with serving(write_model(tmp_path / "model"), "--workers", "1") as served:
        served.healthy().process.send_signal(signal.SIGHUP)
        assert served.ended() == 0
        assert "stopping; requests in progress: 0" in served.log


def test_idle_connections_do_not_delay_a_stop(tmp_path: Path) -> None:
    with serving(write_model(tmp_path / "model"), "--workers", "1") as served:
        served.healthy()
        idle = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        with contextlib.closing(idle), served.connect():
            idle.request("GET", "/ping")
            idle.getresponse().read()
            served.process.terminate()
            assert served.ended() == 0


def test_a_killed_server_leaves_nothing(tmp_path: Path) -> None:
    with serving(write_model(tmp_path / "model"), "--workers", "2") as served:
        pids = [*served.healthy().workers(), served.model_process().pid]
        served.process.kill()
        eventually(lambda: all(map(gone, pids)), "the end of all processes")


FAILING = {
    "raises": ("raise RuntimeError('no such luck')", "no such luck", ""),
    "leaves": ("sys.exit('no such luck')", "SystemExit: no such luck", ""),
    "exits": ("os._exit(9)", "ended with status 9", "see what it logged before"),
    "crashes": ("ctypes.string_at(0)", "was killed by SIGSEGV", "the Python stack before"),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL)", "by SIGKILL", "see the machine's kernel"),
}


@pytest.mark.parametrize("name", sorted(FAILING))
@pytest.mark.parametrize("variables", [{}, {"SAGEMAKER_MXNET_SERVING_LOAD_IN_WORKERS": "true"}])
def test_failed_load_ends_the_server_with_its_cause(
    tmp_path: Path, name: str, variables: "dict[str, str]"
) -> None:
    """Defects 2 and 7 of the peer: it stays, and says that it is healthy."""
    statement, words, remedy = FAILING[name]
    script = SCRIPT.replace('return {"loaded"', f'{statement}; return {{"loaded"')
    with serving(write_model(tmp_path / "model", script), **variables) as served:
        pings: List[int] = []

        def ended() -> bool:
            pings.append(served.ping())
            return served.process.poll() is not None

        eventually(ended, "the end of the server")
        assert served.ended() == 1
        assert words in served.lines[-1] and remedy in served.lines[-1]
        assert 200 not in pings


def test_a_model_file_cut_short(tmp_path: Path) -> None:
    (tmp_path / "model-symbol.json").write_text('{"nodes": [')
    (tmp_path / "model-0000.params").write_bytes(b"\x12\x01\x00\x00")
    (tmp_path / "model-shapes.json").write_text('[{"name": "data", "shape": [1, 4]}]')
    with serving(tmp_path) as served:
        assert served.ended() == 1
        assert "model failed: " in served.lines[-1]


def test_a_requirement_that_cannot_be_installed(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", requirements="no-such-package-of-anybody==1.0\n")
    with serving(model, PIP_NO_INDEX="1") as served:
        assert served.ended() == 1
        assert "install failed (requirements): requirements.txt cannot be installed" in served.log
        assert "no-such-package-of-anybody" in served.lines[-1]


def test_all_faults_in_settings_are_logged(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    wrong = {"SAGEMAKER_MODEL_SERVER_WORKERS": "x", "SAGEMAKER_MODEL_SERVER_TIMEOUT": "y"}
    with serving(model, **wrong) as served:
        assert served.ended() == 1
        assert all(name in served.log for name in wrong)


def test_loading_model_is_unhealthy_and_can_be_stopped(tmp_path: Path) -> None:
    """Defect 7 of the peer: a ping is healthy before the model has been loaded."""
    script = SCRIPT.replace(
        'return {"loaded"', 'print("model_fn called", flush=True); time.sleep(600) #'
    )
    with serving(write_model(tmp_path / "model", script)) as served:
        served.wait_for_log("model_fn called")
        assert served.ping() == 503
        answer = served.invoke(b"early")
        assert (answer.status, b"not loaded yet" in answer.body) == (503, True)
        served.process.terminate()
        assert served.ended() == 0


def test_signals_reach_the_processes_of_a_model(served: Served) -> None:
    """The front holds them back at its start, which its children must not inherit."""
    for pid in [served.model_process().pid, *served.workers()]:
        assert "SigBlk:\t0000000000000000\n" in Path(f"/proc/{pid}/status").read_text()


def test_the_front_has_no_mxnet_in_it(served: Served) -> None:
    """A defect of MXNet, or of a script, cannot take the connections with it."""
    front = Path(f"/proc/{served.process.pid}/maps").read_text()
    model = Path(f"/proc/{served.model_process().pid}/maps").read_text()
    assert "libmxnet" not in front
    assert "libmxnet" in model


def test_failing_worker_starts_end_the_server(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    script = SCRIPT.replace(
        'return {"loaded"',
        f'assert not os.path.exists({str(marker)!r}), "gone bad"; return {{"loaded"',
    )
    variables = {"SAGEMAKER_MXNET_SERVING_LOAD_IN_WORKERS": "true"}
    with serving(write_model(tmp_path / "model", script), "--workers", "2", **variables) as served:
        victim, survivor = served.healthy().workers()
        marker.write_text("")
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: gone(victim), "the end of the worker")
        assert served.invoke(b"worker").body == str(survivor).encode()
        assert served.ended() == 1
        assert "gone bad" in served.lines[-1]
