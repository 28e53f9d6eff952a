"""Faults in the user's script, on real MXNet processes unless the kvstore plays no part."""

import os
import re
import signal
import textwrap
import time
from pathlib import Path
from typing import Callable

import pytest

from sagemaker_mxnet_toolkit.container import OOM_WINDOW
from tests.endings.conftest import (
    CGROUP,
    Verdicts,
    everywhere,
    needs_memory_limit,
    needs_notes,
    needs_root,
)
from tests.support.jobs import IN_GROUP, eventually, job

TRAIN = """
init()
step = 0
while True:
    push_and_pull()
    step += 1
    if step == 3:
        say("training")
    {fault}
    time.sleep(0.01)
"""


def training(fault: str = "pass", host: int = 0) -> str:
    """Return a training loop in which one host has a fault once everybody trains."""
    return TRAIN.format(fault=f'if step == 20 and host == "algo-{host}": {fault}')


@everywhere
def test_uncaught_exception(tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int) -> None:
    fault = 'say("now", time.monotonic()); raise ValueError(f"boom at step {step}")'
    with job(tmp_path, training(fault, culprit), hosts, kvstore=True) as cluster:
        since = float(cluster[culprit].wait_for(r"^now (\S+)").group(1))
        cause = rf"^algo-{culprit}: worker failed: ValueError: boom at step 20 \(exit status 1\)$"
        ends = verdicts.failed(cluster, since, cause)
    for end in ends:
        assert 'raise ValueError(f"boom at step {step}")' in (end.failure or "")
        assert "bootstrap.py" not in end.output, "tracebacks look as they do without us"


@everywhere
def test_exception_without_the_parameter_server(
    tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int
) -> None:
    body = f"""
    say("up")
    if host == "algo-{culprit}":
        time.sleep(0.5)
        say("now", time.monotonic())
        raise KeyError("lost")
    wait_for_ever()
    """
    with job(tmp_path, body, hosts) as cluster:
        since = float(cluster[culprit].wait_for(r"^now (\S+)").group(1))
        verdicts.failed(cluster, since, rf"^algo-{culprit}: worker failed: KeyError: 'lost'")


FAILING = """
    import mxnet as mx

    class Fails(mx.operator.CustomOp):
        def forward(self, is_train, req, in_data, out_data, aux):
            raise KeyError("lost")

    @mx.operator.register("fails")
    class FailsProp(mx.operator.CustomOpProp):
        def create_operator(self, ctx, shapes, dtypes):
            return Fails()

    result = mx.nd.Custom(mx.nd.ones(2), op_type="fails")
"""


def test_an_error_of_an_operation_that_nobody_reads(tmp_path: Path, verdicts: Verdicts) -> None:
    since = time.monotonic()
    with job(tmp_path, FAILING, 1) as cluster:
        verdicts.failed(cluster, since, "worker failed: mxnet.base.MXNetError: KeyError: 'lost'")


def test_an_error_of_an_operation_that_the_script_handles(
    tmp_path: Path, verdicts: Verdicts
) -> None:
    body = f"""{FAILING}
    try:
        result.asnumpy()
    except mx.MXNetError:
        say("handled")
    """
    with job(tmp_path, body, 1) as cluster:
        verdicts.succeeded(cluster)
        assert "handled" in cluster[1].output


@needs_notes
@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ('ValueError("boom")', "ValueError: boom"),
        ('SyntaxError("bad", ("model.py", 3, 1, "def"))', r"SyntaxError: bad \(model.py, line 3\)"),
        ('RuntimeError("one\\ntwo")', "RuntimeError: one two"),
        (
            'ExceptionGroup("all", [KeyError("a"), OSError("b")])',
            r"ExceptionGroup: all \(2 sub-exceptions\): KeyError: 'a'; OSError: b",
        ),
        ("Broken()", r"Broken: <exception in Broken.__str__>"),
    ],
)
def test_note_on_an_exception(tmp_path: Path, verdicts: Verdicts, error: str, cause: str) -> None:
    """The cause is the type and message, even if other lines follow in the traceback."""
    body = f"""
    class Broken(Exception):
        def __str__(self):
            raise ValueError

    error = {error}
    error.add_note("while reading batch 7")
    raise error
    """
    since = time.monotonic()
    with job(tmp_path, body) as cluster:
        (end,) = verdicts.failed(cluster, since, rf"worker failed: {cause} \(exit status 1\)$")
    assert "while reading batch 7" in (end.failure or "")
    assert "while reading batch 7" in end.output


@everywhere
def test_sys_exit_3(tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int) -> None:
    fault = 'say("now", time.monotonic()); sys.exit(3)'
    with job(tmp_path, training(fault, culprit), hosts, kvstore=True) as cluster:
        since = float(cluster[culprit].wait_for(r"^now (\S+)").group(1))
        cause = rf"^algo-{culprit}: worker failed: sys\.exit\(3\) \(exit status 3\)$"
        verdicts.failed(cluster, since, cause, status={culprit: 3})


@everywhere
def test_sigkill(tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int) -> None:
    with job(tmp_path, training(), hosts, kvstore=True) as cluster:
        cluster.wait_for("^training")
        since = cluster[culprit].kill("worker")
        cause = rf"^algo-{culprit}: worker failed: killed by SIGKILL \(exit status 137\)$"
        verdicts.failed(cluster, since, cause, status={culprit: 137})


@everywhere
def test_sigsegv(tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int) -> None:
    """A crash in native code, in a process whose signal handlers MXNet has replaced."""
    fault = 'import ctypes; say("now", time.monotonic()); ctypes.string_at(0)'
    with job(tmp_path, training(fault, culprit), hosts, kvstore=True) as cluster:
        since = float(cluster[culprit].wait_for(r"^now (\S+)").group(1))
        cause = rf"^algo-{culprit}: worker failed: killed by SIGSEGV \(exit status 139\)$"
        ends = verdicts.failed(cluster, since, cause, status={culprit: 139})
    assert "train.py" in (ends[0].failure or ""), "the Python stack of the crash"


@everywhere
def test_sigstop_is_reported_and_not_killed(
    tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int
) -> None:
    """A script that is frozen looks like one under a debugger: it may go on."""
    body = f"""
    say("up")
    while not os.path.exists("{tmp_path}/go"):
        time.sleep(0.05)
    """
    with job(tmp_path, body, hosts) as cluster:
        cluster.wait_for("^up")
        cluster[culprit].kill("worker", signal.SIGSTOP)
        cluster[culprit].wait_for(r"worker: WARNING: suspended by SIGSTOP")
        (tmp_path / "go").touch()
        cluster[culprit].kill("worker", signal.SIGCONT)
        verdicts.succeeded(cluster)


HANDLER = """
def stop(number, frame):
    if os.getpid() != script:
        os._exit(0)  # sys.exit may be dropped, in a destructor: plain Python hangs then too
    say("CHECKPOINT")
    sys.exit(0)

script = os.getpid()
signal.signal(signal.SIGTERM, stop)
"""

CHILDREN = {
    "data-loader": """
        from mxnet import gluon

        def slow(row):
            time.sleep(0.1)
            return row

        data = gluon.data.ArrayDataset(mx.nd.arange(256).reshape((64, 4))).transform(slow)
        loader = gluon.data.DataLoader(data, batch_size=4, num_workers=2)
        for batch in loader:
            break  # the workers are busy with the next ones
        del loader
        """,
    "pool": """
        import multiprocessing

        context = multiprocessing.get_context("fork")
        busy = context.Semaphore(0)

        def task(number):
            busy.release()
            time.sleep(60)

        with context.Pool(2) as pool:
            pool.map_async(task, range(2), 1)
            busy.acquire()
            busy.acquire()
            # A signal that arrives right before a worker waits for a lock wakes nobody, and leaving
            # the pool then hangs in plain Python too. These sleep.
            time.sleep(0.2)
        """,
    "fork-in-a-thread": """
        def fork():
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            time.sleep(0.1)
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)

        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        """,
    "native-fork": """
        import ctypes

        # No hook of Python's runs, as in a library that forks by itself.
        child = ctypes.PyDLL(None).fork()
        if child == 0:
            ctypes.PyDLL(None).sleep(60)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        """,
    "fork-server": """
        import multiprocessing

        child = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join()
        """,
    "spawn": """
        import multiprocessing

        child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join()
        """,
    "subprocess": """
        import subprocess

        for _ in range(20):
            child = subprocess.Popen(["sleep", "60"])
            child.terminate()
            child.wait()
        """,
}
"""Ways in which a script has a child process that is ended with SIGTERM."""


@pytest.mark.parametrize("way", CHILDREN)
def test_sigterm_to_a_child_of_the_script_is_not_a_stop(
    tmp_path: Path, verdicts: Verdicts, way: str
) -> None:
    """As in plain Python: the script trains on, and its handler does not run."""
    # Children of multiprocessing import the script again. Its handler is not theirs, or one that is
    # ended late would run it.
    body = (
        'if __name__ == "__main__":\n'
        + textwrap.indent(textwrap.dedent(HANDLER) + textwrap.dedent(CHILDREN[way]), "    ")
        + """
    deadline = time.monotonic() + 2.5  # for longer than a handler has to run by itself
    while time.monotonic() < deadline:
        time.sleep(0.01)
    with open(os.path.join(os.environ["SM_MODEL_DIR"], "model"), "w") as file:
        file.write("trained")
    say("trained to the end")
"""
    )
    if way == "data-loader":
        body = "import mxnet as mx\n" + body
    with job(tmp_path, body) as cluster:
        (end,) = verdicts.succeeded(cluster)
        assert "CHECKPOINT" not in end.output
        assert "trained to the end" in end.output
        assert (cluster[1].base / "model" / "model").read_text() == "trained"


BROKEN = {
    "import-error": ("import no_such_module\n", r"ModuleNotFoundError: No module named", 1),
    "syntax-error": ("def broken(:\n", r"SyntaxError", 1),
    "missing-script": (None, r"train\.py.*(missing|no such|not there|does not exist)", 1),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize(("hosts", "culprit"), [(1, 1), (2, 2), (3, 1)])
def test_never_starts(
    tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int, kind: str
) -> None:
    """A failure on one host ends all of them, including those whose script waits for it."""
    text, cause, status = BROKEN[kind]

    def spoil(number: int, base: Path) -> None:
        path = base / "code" / "train.py"
        if number == culprit:
            path.unlink() if text is None else path.write_text(text)

    since = time.monotonic()
    with job(tmp_path, "wait_for_ever()", hosts, prepare=spoil) as cluster:
        verdicts.failed(cluster, since, rf"^algo-{culprit}: .*{cause}", status={culprit: status})


@pytest.mark.parametrize(("hosts", "culprit"), [(1, 1), (2, 2), (3, 1)])
def test_bad_interpreter(tmp_path: Path, hosts: int, culprit: int) -> None:
    def spoil(number: int, base: Path) -> None:
        if number == culprit:
            (base / "code" / "train.sh").write_text("#!/no/such/interpreter\n")

    body = "#!/bin/sh\nwhile true; do sleep 0.05; done\n"
    with job(tmp_path, body, hosts, entry_point="train.sh", prepare=spoil) as cluster:
        cause = rf"^algo-{culprit}: worker failed: .*\(exit status 12[67]\)$"
        ends = cluster.ended()
        assert ends[culprit - 1].status in (126, 127)
        for number, end in enumerate(ends, 1):
            assert re.search(cause, end.cause)
            assert "train.sh" in (end.failure or ""), "the shell's own words"
            assert number == culprit or end.status == 1


@pytest.mark.parametrize(("hosts", "culprit"), [(1, 1), (2, 2), (3, 1)])
@needs_root
@needs_memory_limit
def test_out_of_memory(
    tmp_path: Path,
    verdicts: Verdicts,
    limited: Callable[[int], str],
    hosts: int,
    culprit: int,
) -> None:
    """The kernel kills the script at the container's memory limit, which the cause mentions."""
    body = f"""
    if host == "algo-{culprit}":
        say("now", time.monotonic())
        hog = [bytearray(1 << 20) for _ in range(2000)]
    wait_for_ever()
    """
    group = limited(300)

    def inside(number: int) -> dict:
        return {"GROUP": group if number == culprit else str(CGROUP)}

    with job(tmp_path, body, hosts, command=("-c", IN_GROUP), per_host=inside) as cluster:
        since = float(cluster[culprit].wait_for(r"^now (\S+)").group(1))
        cause = (
            rf"^algo-{culprit}: worker failed: out of memory: the container's limit of "
            r"300 MiB was reached \(killed by SIGKILL\) \(exit status 137\)"
        )
        verdicts.failed(cluster, since, cause, status={culprit: 137})


@needs_root
@needs_memory_limit
def test_survived_memory_kill_is_not_a_later_cause(
    tmp_path: Path, verdicts: Verdicts, limited: Callable[[int], str]
) -> None:
    """As with a process of a data loader, which another one replaces."""
    body = f"""
    import subprocess
    hog = "hog = [bytearray(1 << 20) for _ in range(2000)]"
    status = subprocess.call([sys.executable, "-c", hog])
    killed_at = time.monotonic()
    say("survived", status)
    while time.monotonic() < killed_at + {OOM_WINDOW} + 2:
        time.sleep(0.05)
    say("now", time.monotonic())
    raise ValueError("boom")
    """
    group = limited(300)
    with job(tmp_path, body, command=("-c", IN_GROUP), env={"GROUP": group}) as cluster:
        cluster[1].wait_for("^survived -9")
        cluster[1].wait_for(r"WARNING: out of memory: the container's limit of 300 MiB was reached")
        since = float(cluster[1].wait_for(r"^now (\S+)").group(1))
        cause = r"^algo-1: worker failed: ValueError: boom \(exit status 1\)$"
        (end,) = verdicts.failed(cluster, since, cause)
    assert "for lack of memory" in (end.failure or "")


@pytest.mark.parametrize("limit", [1, 2, 4, 9])
@needs_root
def test_process_limit_is_reported(tmp_path: Path, limit: int) -> None:
    """With the lowest limits the entrypoint cannot start anything; it reports this and ends."""
    pids = Path("/sys/fs/cgroup/pids")
    if not pids.is_dir():
        pytest.skip("no pids controller of cgroup version 1")
    group = pids / f"smx-test-{os.getpid()}-{limit}"
    group.mkdir()
    (group / "pids.max").write_text(str(limit))
    body = """
    for _ in range(20):
        threading.Thread(target=wait_for_ever, daemon=True).start()
    """
    try:
        with job(tmp_path, body, command=("-c", IN_GROUP), env={"GROUP": str(group)}) as cluster:
            (end,) = cluster.ended()
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text(), "everybody leaving the group")
        group.rmdir()
    assert "--pids-limit" in end.cause
    if limit > 4:
        assert end.cause.startswith("algo-1: worker failed: RuntimeError: can't start new thread; ")
        assert f"limit of {limit} processes and threads was reached" in end.cause
    else:
        assert "algo-1: entrypoint failed: cannot start " in end.cause
        assert "Traceback" not in end.output
        assert "correct the settings that the cause names" in end.output


@everywhere
def test_requirements_cannot_be_installed(
    tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int
) -> None:
    def spoil(number: int, base: Path) -> None:
        if number == culprit:
            (base / "code" / "requirements.txt").write_text("no-such-package-smx==1\n")

    since = time.monotonic()
    env = {"PIP_NO_INDEX": "1"}
    with job(tmp_path, "wait_for_ever()", hosts, env=env, prepare=spoil) as cluster:
        cause = rf"^algo-{culprit}: install failed: .*no-such-package-smx"
        ends = verdicts.failed(cluster, since, cause)
    assert "No matching distribution found" in (ends[0].failure or ""), "pip's own last lines"
