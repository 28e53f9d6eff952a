"""What breaks under a server: workers, models, scripts, the server itself, and its stop."""

import concurrent.futures
import contextlib
import http.client
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Iterator, List

import psutil
import pytest

from tests.cluster import eventually
from tests.serving.server import SCRIPT, Served, serving, write_model


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
def test_a_script_that_ends_its_process_fails_its_request_alone(
    served: Served, word: bytes
) -> None:
    """Defect 12 of the peer: the next request waits for the model to be loaded again."""
    loaded = served.invoke(b"loaded").body
    answer = served.invoke(word, **{"X-Request-Id": f"over-{word.decode()}"})
    assert answer.status == 500
    assert b"died over this request" in answer.body
    eventually(lambda: f"over request over-{word.decode()}" in served.log, "its name in the log")
    assert served.healthy().invoke(b"loaded").body == loaded


def test_what_a_worker_has_forked_does_not_keep_its_requests(served: Served) -> None:
    """The child holds the worker's end of the connection open, which tells of no end then."""
    answer = served.invoke(b"leave 600")
    assert (answer.status, b"died over this request" in answer.body) == (500, True)
    assert served.healthy().invoke(b"next").body == b"next"


def test_a_request_whose_worker_was_killed_is_tried_once_more(
    served: Served, tmp_path: Path
) -> None:
    answer = served.invoke(b"once " + os.fsencode(tmp_path / "tried"))
    assert (answer.status, answer.body) == (200, b"twice")


def test_an_overdue_worker_is_killed_and_its_caller_told(tmp_path: Path) -> None:
    variables = {"SAGEMAKER_MODEL_SERVER_TIMEOUT": "2"}
    with serving(write_model(tmp_path / "model"), "--workers", "1", **variables) as served:
        answer = served.healthy().invoke(b"hang")
        assert answer.status == 504
        assert b"longer than the server allows" in answer.body
        eventually(lambda: "takes longer than 2 s for a request" in served.log, "its name")
        assert served.healthy().invoke(b"next").body == b"next"


def test_a_stopped_worker_is_killed_and_its_request_answered(served: Served) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.invoke, b"sleep 0.5")
        for pid in served.workers():
            os.kill(pid, signal.SIGSTOP)
        assert answer.result().status == 200
    eventually(lambda: "is stopped by a signal" in served.log, "its name in the log")


def test_workers_killed_under_load_lose_no_request(served: Served) -> None:
    before = set(served.workers())
    stop = threading.Event()
    answers: List[int] = []

    def load() -> None:
        while not stop.is_set():
            answers.append(served.invoke(b"worker").status)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        alive = served.workers()
        count = len(answers)
        os.kill(alive[0], signal.SIGKILL)
        eventually(lambda pid=alive[0]: gone(pid), "the end of the worker")
        eventually(lambda count=count: len(answers) > count + 20, "answers after it")
    stop.set()
    for thread in threads:
        thread.join()
    assert Counter(answers) == {200: len(answers)}
    assert set(served.healthy().workers()) != before


def test_a_model_process_that_dies_is_started_again_and_loses_no_request(served: Served) -> None:
    first = served.model_process()
    workers = served.workers()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(served.invoke, b"sleep 0.3") for _ in range(4)]
        first.kill()
        assert {each.result().status for each in answers} == {200}
    eventually(lambda: all(map(gone, workers)), "the end of its workers")
    assert served.healthy().model_process().pid != first.pid


def test_a_ping_needs_no_worker(served: Served) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(served.invoke, b"sleep 0.5") for _ in range(8)]
        while not all(each.done() for each in answers):
            assert served.ask("GET", "/ping", timeout=2).status == 200
        assert {each.result().status for each in answers} == {200}


def test_sigterm_under_load_loses_no_accepted_request(tmp_path: Path) -> None:
    """Defect 9 of the peer: SIGTERM resets the requests that are under way."""
    with serving(write_model(tmp_path / "model"), "--workers", "2") as served:
        served.healthy()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(served.invoke, b"sleep 1.5") for _ in range(8)]
            half = served.connect()
            half.sendall(b"POST /invocations HTTP/1.1\r\nContent-Length: 5\r\n\r\nha")
            eventually(
                lambda: len(psutil.Process(served.process.pid).net_connections("tcp")) >= 10,
                "all connections",
            )
            time.sleep(0.2)  # until their heads are read, which nothing outside shows
            served.process.terminate()
            eventually(lambda: "stopping; requests under way" in served.log, "the stop")
            assert served.ping() == 503
            refused = served.invoke(b"late")
            assert (refused.status, b"stopping" in refused.body) == (503, True)
            half.sendall(b"lf!")
            assert half.recv(1000).startswith(b"HTTP/1.1 200 ")
            half.close()
            assert [each.result().status for each in answers] == [200] * 8
        assert served.ended() == 0


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
    "raises": ("raise RuntimeError('no such luck')", "no such luck"),
    "exits": ("os._exit(9)", "ended with status 9"),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL)", "died of SIGKILL"),
}


@pytest.mark.parametrize("name", sorted(FAILING))
@pytest.mark.parametrize("variables", [{}, {"SAGEMAKER_MXNET_SERVING_LOAD_IN_WORKERS": "true"}])
def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_cause(
    tmp_path: Path, name: str, variables: "dict[str, str]"
) -> None:
    """Defects 2 and 7 of the peer: it stays, and says that it is healthy."""
    statement, words = FAILING[name]
    script = SCRIPT.replace('return {"loaded"', f'{statement}; return {{"loaded"')
    with serving(write_model(tmp_path / "model", script), **variables) as served:
        pings = []
        while served.process.poll() is None:
            pings.append(served.ping())
        assert served.ended() == 1
        assert words in served.lines[-1]
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


def test_settings_with_faults_are_all_told(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    wrong = {"SAGEMAKER_MODEL_SERVER_WORKERS": "x", "SAGEMAKER_MODEL_SERVER_TIMEOUT": "y"}
    with serving(model, **wrong) as served:
        assert served.ended() == 1
        assert all(name in served.log for name in wrong)


def test_a_model_that_is_loading_is_not_healthy_and_can_be_stopped(tmp_path: Path) -> None:
    """Defect 7 of the peer: a ping is healthy before the model has been loaded."""
    script = SCRIPT.replace('return {"loaded"', 'print("here", flush=True); time.sleep(600) #')
    with serving(write_model(tmp_path / "model", script)) as served:
        eventually(lambda: "here" in served.lines, "the load")
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


def test_workers_that_cannot_start_any_more_end_the_server(tmp_path: Path) -> None:
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
