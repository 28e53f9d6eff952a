"""A process that has imported MXNet, and waits to become a role of the next attempt.

A module for ``processes.program``, without arguments. Its order is one line of JSON on stdin:
``module`` and ``arguments`` of the program that it becomes, ``environment`` and ``directory``. When
stdin is closed without one, the process ends: it is not needed.

It has the variables that the libraries read when they are loaded from its start on; those by which
ps-lite knows its place are read when the kvstore is opened, and come with the order.
"""

import faulthandler
import importlib
import json
import os
import sys
from typing import List

from sagemaker_mxnet_toolkit import compatibility
from sagemaker_mxnet_toolkit.processes.child_report import Report


def main(arguments: List[str], report: Report) -> None:
    """Import MXNet, wait, and run what the order names."""
    compatibility.install()
    faulthandler.enable()  # before MXNet's own handler of crashes, which tells nothing, or it stays
    import mxnet  # noqa: F401, PLC0415

    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return
    order = json.loads(line)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["directory"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    importlib.import_module(order["module"]).main(order["arguments"], report)
