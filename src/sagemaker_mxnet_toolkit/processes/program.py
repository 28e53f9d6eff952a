"""Runs a module of this distribution as the program of a child process.

Started as ``python -u program.py [--wait] MODULE [ARGUMENT...]``; ``argv`` returns that command
line. The module has a function ``main(arguments, report)``. Whatever it raises is reported to the
parent process with its cause and its kind, so that no program has an error boundary of its own.

The module is imported by its full name, from where this distribution is installed. The directory
of this file is removed from ``sys.path``. (``python -m`` would put the working directory there,
which holds the user's code; ``-P`` came with CPython 3.11.)
"""

import os
import sys

WAIT = "--wait"
"""Option: nothing more is imported and done until stdin is closed."""

if __name__ == "__main__":
    del sys.path[0]
    if sys.argv[1] == WAIT:
        os.read(0, 1)
        del sys.argv[1]

import importlib  # noqa: E402
from typing import NoReturn, Optional, Sequence, Tuple  # noqa: E402

from sagemaker_mxnet_toolkit.processes import child_report  # noqa: E402
from sagemaker_mxnet_toolkit.processes.child_report import Report  # noqa: E402


def argv(module: str, *arguments: str, wait: bool = False) -> Tuple[str, ...]:
    """Return the command line that runs a module in a child process of this Python.

    Args:
        module: full name of a module with a function ``main(arguments, report)``.
        *arguments: its arguments.
        wait: whether it waits until its stdin is closed, before it imports anything.
    """
    options = (WAIT,) if wait else ()
    return (sys.executable, "-u", os.path.abspath(__file__), *options, module, *arguments)


def module_of(command: Sequence[str]) -> Optional[Tuple[str, Tuple[str, ...]]]:
    """Return the module and its arguments of a command line of ``argv``; ``None`` for another."""
    if list(command[1:3]) != ["-u", os.path.abspath(__file__)]:
        return None
    words = [word for word in command[3:4] if word != WAIT] + list(command[4:])
    return words[0], tuple(words[1:])


def main() -> NoReturn:
    """Run the module that the command line names.

    The process ends with status 0, with status 1 after a failure that was reported, or as the
    module's own ``sys.exit`` says.
    """
    report = child_report.open_report()
    try:
        importlib.import_module(sys.argv[1]).main(sys.argv[2:], report)
    except Exception as error:
        report_exception(report, error)
        sys.exit(1)
    sys.exit(0)


def report_exception(report: Report, error: Exception) -> None:
    """Report what ended a program: an error of ours in its own words, all else as a defect."""
    from sagemaker_mxnet_toolkit import tracebacks  # noqa: PLC0415  (at this rare end only)
    from sagemaker_mxnet_toolkit.errors import JobError  # noqa: PLC0415

    if isinstance(error, JobError):
        reason, _, detail = str(error).partition("\n")
        report.failed(reason, detail, error.kind.value)
    else:
        reason = f"internal error: {tracebacks.summary(error)}"
        report.failed(reason, tracebacks.text(error), child_report.INTERNAL)


if __name__ == "__main__":
    main()
