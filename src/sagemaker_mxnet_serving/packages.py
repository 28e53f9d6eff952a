"""A place for required packages where Python's own cannot be written, as on a read-only root."""

import contextlib
import os
import sysconfig
import tempfile
from typing import Dict, Iterator, Mapping


@contextlib.contextmanager
def installable(environ: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """Give an environment in which pip can install, and Python finds what it has installed.

    That is ``environ`` itself where this user can write into Python's directory of packages, and
    otherwise one that names a directory below the temporary one, which is removed afterwards.

    Args:
        environ: the environment of the processes of models.
    """
    with contextlib.ExitStack() as stack:
        if not (os.access(sysconfig.get_path("purelib"), os.W_OK) or environ.get("PIP_TARGET")):
            with contextlib.suppress(OSError):  # pip says what is wrong, if it is needed
                name = "sagemaker-mxnet-packages-"
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=name))
                path = [*_site_packages(folder), environ.get("PYTHONPATH", "")]
                environ = {
                    **environ,
                    "PIP_PREFIX": folder,
                    "PYTHONPATH": os.pathsep.join(filter(None, path)),
                }
        yield environ


def _site_packages(prefix: str) -> Iterator[str]:
    """Yield the directories into which pip installs below a prefix."""
    # pip asks the same of Python: Debian's has a scheme of its own.
    preferred = getattr(sysconfig, "get_preferred_scheme", lambda key: "posix_prefix")("prefix")
    variables: Dict[str, str] = {"base": prefix, "platbase": prefix}
    paths = sysconfig.get_paths(preferred, variables)
    yield from dict.fromkeys((paths["purelib"], paths["platlib"]))
