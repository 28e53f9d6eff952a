"""Multi-model endpoints: models that come and go by requests."""

import concurrent.futures
import contextlib
import http.client
import json
import os
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

import psutil
import pytest

from tests.support.jobs import eventually
from tests.support.real_server import SCRIPT, Answer, Served, serving, write_model


@pytest.fixture(scope="module")
def multi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuple[Served, Path]]:
    base = tmp_path_factory.mktemp("models")
    helper = SCRIPT.replace("import ctypes", "import helper, ctypes")
    (write_model(base / "one" / "model", helper) / "code" / "helper.py").write_text("")
    write_model(base / "two" / "model")
    write_model(base / "broken" / "model", SCRIPT.replace("return {", "raise RuntimeError('hm') #"))
    with serving(base, SAGEMAKER_MULTI_MODEL="true") as served:
        yield served.healthy(), base


def load(served: Served, name: str, url: object) -> Answer:
    body = json.dumps({"model_name": name, "url": str(url)}).encode()
    return served.ask("POST", "/models", body, {"Content-Type": "application/json"})


def invoke(served: Served, name: str, body: bytes) -> Answer:
    kind = {"Content-Type": "application/octet-stream"}
    return served.ask("POST", f"/models/{name}/invoke", body, kind)


def test_load_invoke_and_unload(multi: Tuple[Served, Path]) -> None:
    """Defect 14 of the peer: ``code/`` cannot be imported."""
    served, base = multi
    assert invoke(served, "a", b"x").status == 404
    assert load(served, "a", base / "one/model").status == 200
    assert load(served, "a", base / "one/model").status == 409
    assert invoke(served, "a", b"hello").body == b"hello"
    assert json.loads(served.ask("GET", "/models/a").body)["modelName"] == "a"
    processes = psutil.Process(served.process.pid).children(recursive=True)
    assert processes
    assert served.ask("DELETE", "/models/a").status == 200
    assert not any(each.is_running() for each in processes), "its memory is free"
    assert served.ask("DELETE", "/models/a").status == 404
    assert served.ask("GET", "/models/a").status == 404
    assert served.ping() == 200


def test_broken_model_fails_only_itself(multi: Tuple[Served, Path]) -> None:
    """Defect 14 of the peer: 200 for a model that is broken."""
    served, base = multi
    assert load(served, "good", base / "two/model").status == 200
    answer = load(served, "bad", base / "broken/model")
    assert answer.status == 500
    assert b"cannot be loaded" in answer.body and b"Traceback" not in answer.body
    assert invoke(served, "bad", b"x").status == 404
    assert invoke(served, "good", b"exit").status == 500
    eventually(lambda: invoke(served, "good", b"x").status == 200, "another worker")
    served.ask("DELETE", "/models/good")


@pytest.mark.parametrize("variables", [{}, {"SAGEMAKER_MXNET_SERVING_LOAD_IN_WORKERS": "true"}])
def test_load_without_memory_returns_507(tmp_path: Path, variables: "dict[str, str]") -> None:
    hungry = SCRIPT.replace("return {", "raise MemoryError() #")
    write_model(tmp_path / "hungry" / "model", hungry)
    with serving(tmp_path, SAGEMAKER_MULTI_MODEL="true", **variables) as served:
        answer = load(served.healthy(), "hungry", "hungry/model")
        assert (answer.status, b"not enough memory" in answer.body) == (507, True)
        served.wait_for_log("model_fn")


def test_lists_have_pages(multi: Tuple[Served, Path]) -> None:
    served, base = multi
    for name in ("p1", "p2"):
        assert load(served, name, base / "two/model").status == 200
    page = json.loads(served.ask("GET", "/models?limit=1").body)
    assert [each["modelName"] for each in page["models"]] == ["p1"]
    rest = json.loads(served.ask("GET", f"/models?next_page_token={page['nextPageToken']}").body)
    assert [each["modelName"] for each in rest["models"]] == ["p2"]
    assert "nextPageToken" not in rest
    assert served.ask("GET", "/models?limit=x").status == 400
    for name in ("p1", "p2"):
        assert served.ask("DELETE", f"/models/{name}").status == 200


@pytest.mark.parametrize(
    ("name", "url", "status"),
    [
        ("etc", "/etc", 400),
        ("up", "../..", 400),
        ("dot", ".", 400),
        ("none", "missing", 404),
        ("", "two/model", 400),
        ("n\u0000", "two/model", 400),
        ("nul", "two\u0000", 400),
    ],
)
def test_names_and_urls_outside_of_the_directory(
    multi: Tuple[Served, Path], name: str, url: str, status: int
) -> None:
    """Defect 14 of the peer: ``/etc`` is a model."""
    assert load(multi[0], name, url).status == status


def test_name_with_a_slash(multi: Tuple[Served, Path]) -> None:
    served, _ = multi
    assert load(served, "a/../b", "two/model").status == 200
    assert invoke(served, "a%2F..%2Fb", b"hello").body == b"hello"
    answer = invoke(served, "a/../b", b"hello")
    assert (answer.status, b"'/models/a/../b/invoke' does not exist" in answer.body) == (404, True)
    assert served.ask("DELETE", "/models/a%2F..%2Fb").status == 200


BUSY = """
import os, time

def model_fn(model_dir):
    return None

def transform_fn(model, body, content_type, accept):
    open(body.decode() + ".begun", "w").close()
    while not os.path.exists(body.decode()):
        time.sleep(0.01)
    return b"done"
"""


def test_unload_is_not_logged_as_a_stop(multi: Tuple[Served, Path], tmp_path: Path) -> None:
    served, base = multi
    write_model(base / "busy" / "model", BUSY)
    assert load(served, "busy", "busy/model").status == 200
    released = tmp_path / "released"
    answers: List[concurrent.futures.Future[Answer]] = []
    with concurrent.futures.ThreadPoolExecutor(100) as pool:

        def ask() -> Optional[Answer]:
            answers.append(pool.submit(invoke, served, "busy", bytes(released)))
            return next((each.result() for each in answers if each.done()), None)

        assert ask() is None
        eventually((tmp_path / "released.begun").exists, "a request under way")
        unload = pool.submit(served.ask, "DELETE", "/models/busy")
        answer = eventually(ask, "a refusal")
        released.touch()
        assert (answer.status, b"being unloaded" in answer.body) == (503, True)
        assert (answers[0].result().status, unload.result().status) == (200, 200)


def test_archive_one_directory_deeper(multi: Tuple[Served, Path]) -> None:
    served, base = multi
    deep = base / "deep" / "model" / "my_model"
    deep.mkdir(parents=True)
    (deep / "word.txt").write_text("deeper")
    (deep / "inference.py").write_text(
        "WORD = open('word.txt').read()\n"
        "def model_fn(model_dir): return model_dir\n"
        "def transform_fn(model, body, content_type, accept): return f'{model} {WORD}'\n"
    )
    assert load(served, "deep", "deep/model").status == 200
    assert invoke(served, "deep", b"").body == f"{deep} deeper".encode()


def test_a_link_does_not_escape(multi: Tuple[Served, Path]) -> None:
    served, base = multi
    (base / "link").symlink_to("/etc")
    assert load(served, "link", base / "link").status == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model_name": 1, "url": 2}', b"[" * 9999])
def test_bodies_that_name_no_model(multi: Tuple[Served, Path], body: bytes) -> None:
    assert multi[0].ask("POST", "/models", body).status == 400


def test_model_larger_than_the_memory_is_rejected(multi: Tuple[Served, Path]) -> None:
    served, base = multi
    huge = write_model(base / "huge" / "model")
    with open(huge / "weights", "wb") as file:
        file.truncate(2**43)  # a sparse file
    answer = load(served, "huge", huge)
    assert answer.status == 507
    assert b"memory" in answer.body


def test_failed_load_releases_the_name(tmp_path: Path) -> None:
    write_model(tmp_path / "one" / "model")
    limit = 80
    prefix = ("prlimit", f"--nofile={limit}:{limit}")
    with serving(tmp_path, prefix=prefix, SAGEMAKER_MULTI_MODEL="true") as served:
        client = http.client.HTTPConnection("127.0.0.1", served.healthy().port, timeout=60)
        client.connect()

        def load_one() -> Tuple[int, bytes]:
            body = json.dumps({"model_name": "one", "url": "one/model"}).encode()
            client.request("POST", "/models", body)
            answer = client.getresponse()
            return answer.status, answer.read()

        with contextlib.ExitStack() as idle:
            for _ in range(limit):
                idle.enter_context(served.connect())
            files = f"/proc/{served.process.pid}/fd"
            eventually(lambda: len(os.listdir(files)) == limit, "all files in use")
            status, text = load_one()
            assert (status, b"limit on open files" in text) == (500, True)
            client.request("GET", "/models")
            assert json.loads(client.getresponse().read()) == {"models": []}
        eventually(lambda: len(os.listdir(files)) < limit // 2, "files that are free again")
        assert load_one()[0] == 200
        client.close()
