"""Runs a module of this distribution as the program of a child process.

Started as ``python -u program.py [--wait] MODULE [ARGUMENT...]``; ``argv`` returns that command
line. The module has a function ``main(arguments, report)``. Exceptions that it raises are reported
to the parent process.

The module is imported by its full name. The directory of this file is removed from ``sys.path``.
(``python -m`` would add the working directory, which contains the user's code; ``-P`` requires
CPython 3.11.)
"""

import os
import sys

WAIT = "--wait"
"""Option: wait until stdin is closed before importing anything else."""

if __name__ == "__main__":
    del sys.path[0]
    if sys.argv[1] == WAIT:
        os.read(0, 1)
        del sys.argv[1]

import importlib  # noqa: E402
import signal  # noqa: E402
from typing import Mapping, NoReturn, Tuple  # noqa: E402

from sagemaker_mxnet_toolkit import tracebacks  # noqa: E402
from sagemaker_mxnet_toolkit.failure import FailureKind, JobError  # noqa: E402
from sagemaker_mxnet_toolkit.processes import child_report  # noqa: E402
from sagemaker_mxnet_toolkit.processes.child_report import Report  # noqa: E402


def argv(
    module: str, *arguments: str, wait: bool = False, python: str = sys.executable
) -> Tuple[str, ...]:
    """Return the command line that runs a module in a child process.

    Args:
        module: full name of a module with a function ``main(arguments, report)``.
        *arguments: its arguments.
        wait: wait until stdin is closed before importing anything.
        python: the interpreter, by default this one.
    """
    options = (WAIT,) if wait else ()
    return (python, "-u", os.path.abspath(__file__), *options, module, *arguments)


def search_path(environ: Mapping[str, str], python: str = sys.executable) -> str:
    """Return a ``PATH`` that finds the ``python`` and ``pip`` of an interpreter first.

    The virtual environment may not be activated.
    """
    own, path = os.path.dirname(python), environ.get("PATH", os.defpath)
    return path if path.split(os.pathsep)[0] == own else own + os.pathsep + path


def main() -> NoReturn:
    """Run the module that is named on the command line.

    The exit status is 0, 1 after a reported failure, or that of the module's ``sys.exit``.
    """
    report = child_report.open_report()
    try:
        importlib.import_module(sys.argv[1]).main(sys.argv[2:], report)
    except Exception as error:
        report_exception(report, error)
        sys.exit(1)
    except KeyboardInterrupt:  # the job stops: what it interrupted is of no interest
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(0)


def report_exception(report: Report, error: Exception) -> None:
    """Report the exception that ended a program. All but a ``JobError`` are internal errors."""
    if isinstance(error, JobError):
        reason, _, detail = str(error).partition("\n")
        report.failed(reason, detail, error.kind)
    else:
        reason = f"internal error: {tracebacks.summary(error)}"
        report.failed(reason, tracebacks.text(error), FailureKind.INTERNAL)


if __name__ == "__main__":
    main()
