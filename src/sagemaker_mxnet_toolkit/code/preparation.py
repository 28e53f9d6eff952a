"""Whether code has to be fetched, and whether something has to be installed for it.

Apart from what does these things: a supervisor asks, and child processes do them.
"""

import os
from typing import Optional

from sagemaker_mxnet_toolkit.code.entry_point import EntryPointKind, entry_point_kind

REQUIREMENTS = "requirements.txt"
"""Name of the file in the code directory, as in sagemaker-training 5.1.4."""


def fetch_needed(module_dir: str, code_dir: str) -> bool:
    """Tell whether the code is not in its place yet."""
    return os.path.realpath(module_dir) != os.path.realpath(code_dir)


def install_needed(code_dir: str, entry_point: Optional[str] = None) -> bool:
    """Tell whether there may be something to install.

    Args:
        code_dir: the code directory, with the code in it.
        entry_point: relative to it, if there is one.
    """
    requirements = os.path.exists(os.path.join(code_dir, REQUIREMENTS))
    return requirements or is_package(code_dir, entry_point)


def is_package(code_dir: str, entry_point: Optional[str]) -> bool:
    """Tell whether the entry point is a package, which is installed itself."""
    if entry_point is None:
        return False
    return entry_point_kind(code_dir, entry_point) is EntryPointKind.PYTHON_PACKAGE
