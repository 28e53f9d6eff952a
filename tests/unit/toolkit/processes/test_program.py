"""Every exception that ends a child program is reported with its kind."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from sagemaker_mxnet_toolkit.failure import FailureKind
from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_toolkit.settings.variables import REPORT_FD

BOUND = 60.0


class Program:
    """A module to run, and how it ended."""

    def __init__(self, folder):
        self.folder = folder
        self.code = folder / "code"
        self.code.mkdir()

    def start(self, body, wait=False):
        text = textwrap.indent(textwrap.dedent(body).strip(), "    ")
        (self.folder / "example.py").write_text(f"def main(arguments, report):\n{text}\n")
        reader, writer = os.pipe()
        environ = {**os.environ, REPORT_FD: str(writer)}
        paths = [str(self.folder), environ.get("PYTHONPATH", "")]
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        process = subprocess.Popen(
            program.argv("example", "one", "two", wait=wait),
            cwd=self.code,
            env=environ,
            pass_fds=(writer,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(writer)
        return process, reader

    def run(self, body):
        """Return the exit status, the events and the output."""
        process, reader = self.start(body)
        try:
            output, errors = process.communicate(timeout=BOUND)
        finally:
            process.kill()
        with open(reader, encoding="utf-8") as pipe:
            events = [json.loads(line) for line in pipe]
        return process.returncode, events, output + errors


@pytest.fixture
def example(tmp_path):
    return Program(tmp_path)


def test_a_program_gets_its_arguments_and_its_report(example):
    status, events, output = example.run("""
        report.event("started")
        print(arguments)
        """)
    assert (status, events, output) == (0, [{"event": "started"}], "['one', 'two']\n")


ERRORS = {
    "CodeError": FailureKind.CODE,
    "RequirementsError": FailureKind.REQUIREMENTS,
    "NetworkError": FailureKind.NETWORK,
    "JobError": FailureKind.INTERNAL,
}


@pytest.mark.parametrize("name", ERRORS)
def test_job_error_is_reported_with_its_message_and_kind(example, name):
    status, events, output = example.run(f"""
        from sagemaker_mxnet_toolkit.failure import {name}
        raise {name}("the cause\\nmore\\nlines")
        """)
    reported = {"reason": "the cause", "detail": "more\nlines", "kind": ERRORS[name].value}
    assert (status, events) == (1, [{"event": "failed", **reported}])
    assert output == ""


def test_several_faults_of_a_configuration_are_one_failure(example):
    _, (event,), _ = example.run("""
        from sagemaker_mxnet_toolkit.failure import ConfigurationError
        raise ConfigurationError(["one", "two"])
        """)
    assert event["kind"] == FailureKind.CONFIGURATION.value
    assert event["reason"] == "configuration: 2 errors:" and "  - two" in event["detail"]


@pytest.mark.parametrize(
    "body",
    [
        'raise OSError(28, "No space left on device", "/somewhere")',
        'raise KeyError("x")',
        'raise UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")',
        "import no_such_module",
        "assert False",
    ],
)
def test_other_exceptions_are_reported_with_traceback(example, body):
    status, (event,), output = example.run(body)
    assert (status, event["event"], event["kind"]) == (1, "failed", FailureKind.INTERNAL.value)
    assert event["reason"].startswith("internal error: ")
    assert event["detail"].startswith("Traceback (most recent call last)")
    assert "Traceback" not in output


def test_ctrl_c_ends_a_program_without_a_traceback(example):
    status, events, output = example.run("raise KeyboardInterrupt")
    assert (status, events, output) == (-signal.SIGINT, [], "")


def test_a_module_that_cannot_be_imported_is_a_reported_failure(example):
    status, (event,), _ = example.run("pass\nthis is no Python")
    assert (status, event["kind"]) == (1, FailureKind.INTERNAL.value)
    assert event["reason"].startswith("internal error: SyntaxError: ")
    assert "example.py, line 3" in event["reason"]


def test_an_exit_status_is_kept(example):
    assert example.run("raise SystemExit(3)") == (3, [], "")


def test_working_directory_is_not_on_sys_path(example):
    for name in ("json", "typing", "importlib", "program", "child_report"):
        (example.code / f"{name}.py").write_text("raise SystemExit('imported')")
    status, events, output = example.run("""
        import os, sys
        print(os.path.dirname(sys.modules["__main__"].__file__) in sys.path, "" in sys.path)
        """)
    assert (status, events, output) == (0, [], "False False\n")


def test_waiting_program_starts_when_its_stdin_is_closed(example):
    process, reader = example.start('report.event("started")', wait=True)
    try:
        os.set_blocking(reader, False)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
        process.communicate(timeout=BOUND)
        assert process.returncode == 0
        assert json.loads(os.read(reader, 4096)) == {"event": "started"}
    finally:
        process.kill()
        process.wait()
        os.close(reader)


def test_a_forked_child_reports_nothing(example):
    status, events, _ = example.run("""
        import os
        if os.fork() == 0:
            report.event("started")
            report.failed("not the program")
            os._exit(0)
        os.wait()
        report.event("finished")
        """)
    assert (status, events) == (0, [{"event": "finished"}])


def test_importing_the_program_changes_nothing():
    import sys

    before = list(sys.path)
    importlib.reload(program)
    assert sys.path == before


def test_a_line_is_written_at_once():
    """With ``python -u``, ``print`` would write the end of the line by itself."""
    read_end, write_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    source = (
        "from sagemaker_mxnet_toolkit.processes.child_report import print_whole, write_line\n"
        "print_whole('a line')\nwrite_line('another')"
    )
    with read_end, write_end:
        subprocess.run([sys.executable, "-u", "-c", source], stderr=write_end, check=True)
        assert read_end.recv(100) == b"a line\n"
        assert read_end.recv(100) == b"[sagemaker-mxnet-training] another\n"
