"""Containers that serve what a container has trained."""

import io
import json
import shutil
import subprocess
import threading
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from tests.support.containers import Container, Engine, Trained, run
from tests.support.jobs import eventually
from tests.support.packages import wheel

SLOW = """
import os, time

def transform_fn(model, body, content_type, accept):
    print("request came", flush=True)
    while not os.path.exists("/opt/ml/go"):
        time.sleep(0.05)
    return body, accept
"""

HARDENED = (
    *("--user", "12345:12345", "--read-only", "--tmpfs", "/tmp"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
)


class Server:
    """A container that serves, and its port on this machine."""

    def __init__(self, container: Container, port: int) -> None:
        self.container = container
        published = run("docker", "port", container.name, str(port)).stdout.splitlines()[0]
        self._host, _, number = published.rpartition(":")
        self._port = int(number)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Optional[Mapping[str, str]] = None,
    ) -> Tuple[int, Any, bytes]:
        """Return status, headers and body of the answer."""
        connection = HTTPConnection(self._host, self._port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def ping(self) -> Optional[int]:
        """Return the status of ``/ping``; None where nobody listens."""
        try:
            return self.ask("GET", "/ping")[0]
        except OSError:
            return None

    def ready(self) -> "Server":
        ended = subprocess.Popen(["docker", "wait", self.container.name], stdout=subprocess.DEVNULL)

        def look() -> bool:
            assert ended.poll() is None, self.container.log()
            return self.ping() == 200

        try:
            eventually(look, f"an answer of {self.container.name}", 180)
        finally:
            ended.kill()
            ended.wait()
        return self


def serve(
    engine: Engine,
    model: Path,
    script: str = "",
    env: Optional[Mapping[str, str]] = None,
    port: int = 8080,
    options: Sequence[str] = (),
) -> Server:
    """Start a container on a copy of a model, with a script if one is given."""
    folder = engine.folder / "server/model"
    shutil.copytree(model, folder)
    if script:
        (folder / "code").mkdir()
        (folder / "code/inference.py").write_text(script)
    publish = ("--publish", f"127.0.0.1::{port}")
    return Server(engine.start("server", "serve", env=env, options=(*publish, *options)), port)


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def csv(array: Any) -> bytes:
    return "\n".join(",".join(map(repr, row)) for row in array.tolist()).encode()


def test_answers_with_nothing_but_tmp_to_write_to(engine: Engine, trained: Trained) -> None:
    """Ping and each content type, as a user without a name and without capabilities."""
    server = serve(engine, trained.model, options=HARDENED).ready()
    assert server.ask("GET", "/ping")[2] == b""
    bodies = {
        "application/json": json.dumps(trained.rows.tolist()).encode(),
        "text/csv": csv(trained.rows),
        "application/x-npy": npy(trained.rows),
    }
    readers = {
        "application/json": json.loads,
        "text/csv": lambda body: np.loadtxt(io.BytesIO(body), delimiter=","),
        "application/x-npy": lambda body: np.load(io.BytesIO(body)),
    }
    for content_type, body in bodies.items():
        for accept, read in readers.items():
            headers = {"Content-Type": content_type, "Accept": accept}
            status, found, answer = server.ask("POST", "/invocations", body, headers)
            assert (status, found["Content-Type"]) == (200, accept), answer
            np.testing.assert_allclose(read(answer), trained.answers, rtol=1e-5, atol=1e-6)
    mistake = server.ask("POST", "/invocations", b"[[1,", {"Content-Type": "application/json"})
    assert mistake[0] == 400


def test_requirements_with_nothing_but_tmp_to_write_to(
    engine: Engine, trained: Trained, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(trained.model, model)
    (model / "code").mkdir()
    required = wheel(model / "code", "doubling", "1.0", code="FACTOR = 2\n")
    (model / "code/requirements.txt").write_text(f"./{required.name}\n")
    (model / "code/inference.py").write_text(
        "from doubling import FACTOR\n"
        "def predict_fn(data, model):\n"
        "    return FACTOR * model.predict(data)\n"
    )
    server = serve(engine, model, options=HARDENED).ready()
    headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
    answer = server.ask("POST", "/invocations", npy(trained.rows), headers)[2]
    found = np.load(io.BytesIO(answer))
    np.testing.assert_allclose(found, 2 * trained.answers, rtol=1e-5, atol=1e-6)


def test_many_models(engine: Engine, trained: Trained) -> None:
    """Each is loaded when it is asked for, answers under its name, and is unloaded."""
    for name in ("one", "two"):
        shutil.copytree(trained.model, engine.folder / f"server/models/{name}/model")
    script = "def output_fn(prediction, accept):\n    return 'two', 'text/plain'\n"
    (engine.folder / "server/models/two/model/code").mkdir()
    (engine.folder / "server/models/two/model/code/inference.py").write_text(script)
    publish = ("--publish", "127.0.0.1::8080")
    env = {"SAGEMAKER_MULTI_MODEL": "true"}
    server = Server(engine.start("server", "serve", env=env, options=publish), 8080).ready()
    kind = {"Content-Type": "application/json"}
    rows = json.dumps(trained.rows.tolist()).encode()
    assert server.ask("POST", "/models/one/invoke", rows, kind)[0] == 404
    for name in ("one", "two"):
        place = {"model_name": name, "url": f"/opt/ml/models/{name}/model"}
        assert server.ask("POST", "/models", json.dumps(place).encode(), kind)[0] == 200
    loaded = json.loads(server.ask("GET", "/models")[2])["models"]
    assert [each["modelName"] for each in loaded] == ["one", "two"]
    answer = json.loads(server.ask("POST", "/models/one/invoke", rows, kind)[2])
    np.testing.assert_allclose(answer, trained.answers, rtol=1e-5, atol=1e-6)
    assert server.ask("POST", "/models/two/invoke", rows, kind)[2] == b"two"
    assert server.ask("DELETE", "/models/one")[0] == 200
    assert server.ask("POST", "/models/one/invoke", rows, kind)[0] == 404
    assert server.ask("POST", "/models/two/invoke", rows, kind)[2] == b"two"


def test_stop_waits_for_the_request(engine: Engine, trained: Trained) -> None:
    """``docker stop``: ping says 503, what was asked is answered, the status is 0."""
    env = {"SAGEMAKER_BIND_TO_PORT": "8123"}
    server = serve(engine, trained.model, SLOW, env, port=8123).ready()
    answers: List[Tuple[int, Any, bytes]] = []
    caller = threading.Thread(
        target=lambda: answers.append(server.ask("POST", "/invocations", b"\x00\xff"))
    )
    caller.start()
    server.container.says("request came")
    stop = subprocess.Popen(["docker", "stop", server.container.name], stdout=subprocess.DEVNULL)
    eventually(lambda: server.ping() == 503, "a ping of 503", 10)
    (server.container.base / "go").touch()
    caller.join(30)
    assert stop.wait(30) == 0
    assert [(status, body) for status, _, body in answers] == [(200, b"\x00\xff")]
    assert server.container.wait() == 0


def test_model_that_cannot_be_loaded_ends_the_container(engine: Engine, trained: Trained) -> None:
    """The status is 1, and the log says which file, and what is the matter with it."""
    broken = engine.folder / "broken"
    shutil.copytree(trained.model, broken)
    parameters = broken / "model-0000.params"
    parameters.write_bytes(parameters.read_bytes()[:100])
    folder = engine.folder / "server/model"
    shutil.copytree(broken, folder)
    container = engine.start("server", "serve")
    assert container.wait() == 1
    log = container.log()
    assert "model-0000.params" in log
    assert "Traceback" not in log
