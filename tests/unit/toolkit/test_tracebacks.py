"""The line that becomes a job's cause: type and message of any exception."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_toolkit import tracebacks


class Custom(Exception):
    class Inner(Exception):
        pass


class Broken(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class NoText(Exception):
    def __str__(self):
        return 7  # noqa: PLE0307


def syntax_error():
    try:
        compile("x = 1\ndef broken(:\n", "train.py", "exec")
    except SyntaxError as error:
        return error


HERE = __name__


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("boom at step 20"), "ValueError: boom at step 20"),
        (KeyError("lost"), "KeyError: 'lost'"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (ValueError(""), "ValueError"),
        (ValueError("first\n  second\n\nthird"), "ValueError: first second third"),
        (Custom("x"), f"{HERE}.Custom: x"),
        (
            Custom("Traceback (most recent call last):\n  File x.h\nCustom: Check failed: x\n y"),
            f"{HERE}.Custom: Check failed: x y",
        ),
        (
            ValueError("worker 3:\nTraceback (most recent call last):\n  File x\nKeyError: 1"),
            "ValueError: worker 3: Traceback (most recent call last): File x KeyError: 1",
        ),
        (Custom.Inner("x"), f"{HERE}.Custom.Inner: x"),
        (Broken(), f"{HERE}.Broken: <exception in {HERE}.Broken.__str__>"),
        (NoText(), f"{HERE}.NoText: <exception in {HERE}.NoText.__str__>"),
        (
            FileNotFoundError(2, "No such file", "a"),
            "FileNotFoundError: [Errno 2] No such file: 'a'",
        ),
    ],
)
def test_the_summary_is_type_and_message(error, line):
    assert tracebacks.summary(error) == line


def test_a_syntax_error_names_its_place():
    error = syntax_error()
    assert tracebacks.summary(error) == f"SyntaxError: {error.msg} (train.py, line 2)"


def test_a_class_of_the_script_has_no_module_in_front():
    kind = type("MyError", (Exception,), {"__module__": "__main__"})
    assert tracebacks.summary(kind("x")) == "MyError: x"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs add_note")
def test_notes_are_in_the_text_and_not_in_the_summary():
    error = ValueError("boom")
    error.add_note("while reading batch 7")
    error.add_note("hint: look at the data")
    assert tracebacks.summary(error) == "ValueError: boom"
    assert tracebacks.text(error).splitlines()[-2:] == [
        "while reading batch 7",
        "hint: look at the data",
    ]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs exception groups")
def test_a_group_is_followed_by_its_members():
    inner = ExceptionGroup("inner", [KeyError("k")])  # noqa: F821
    group = ExceptionGroup("outer", [ValueError("a"), inner, *map(OSError, "xyz")])  # noqa: F821
    assert tracebacks.summary(group) == (
        "ExceptionGroup: outer (5 sub-exceptions): ValueError: a; "
        "ExceptionGroup: inner (1 sub-exception): KeyError: 'k'; OSError: x; ..."
    )


def test_a_traceback_that_cannot_be_made_is_no_second_failure(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("traceback.format_exception", fail)
    assert tracebacks.text(ValueError("boom")) == "(no traceback: MemoryError)"


@given(st.text())
def test_every_message_becomes_one_line(message):
    line = tracebacks.summary(ValueError(message))
    assert line.startswith("ValueError") and len(line.splitlines()) == 1


CPP = "terminate called after throwing an instance of 'dmlc::Error'\n  what():  no such file\n"
DUMP = "Fatal Python error: Aborted\n\nThread 0x1 (most recent call first):\n  File x\n"
TRACE = "Traceback (most recent call last):\n  File x\nKeyError: 1\n"


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("", ""),
        ("\n \n", ""),
        ("step 1\nfree(): invalid pointer\n", "free(): invalid pointer"),
        (f"step 1\n{CPP}", "dmlc::Error: no such file"),
        (f"{CPP}Stack trace:\n  [bt] 0x1\n{DUMP}", "dmlc::Error: no such file"),
        (f"{DUMP}", ""),
        (f"{TRACE}ok\n", "KeyError: 1"),
        (f"{TRACE}\nDuring handling:\n\n{TRACE.replace('KeyError', 'OSError')}", "OSError: 1"),
        ("train.sh: line 2: foo: command not found\n", "train.sh: line 2: foo: command not found"),
    ],
)
def test_last_words_say_why_a_process_ends(stderr, words):
    assert tracebacks.last_words(stderr) == words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m\ttab\nline\r\n", "red\ttab\nline\r\n"),
        ("\x1b]0;title\x07done", "done"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b(Bplain\x1b7", "plain"),
        ("cut \x1b[31", "cut \\x1b[31"),
        ("\x00\x07\x9b", "\\x00\\x07\\x9b"),
        ("ä\udce4", "ä\udce4"),
    ],
)
def test_plain_text_has_no_terminal_sequences(text, shown):
    assert tracebacks.plain(text) == shown


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            'Traceback (most recent call last):\n  File "op.h", line 4\nMXNetError: no\n',
            "MXNetError: no",
        ),
        ("one line", "one line"),
        (" \n", "ValueError"),
    ],
)
def test_cause_is_the_last_line_of_an_error_of_mxnet(message, line):
    assert tracebacks.cause_line(ValueError(message)) == line
