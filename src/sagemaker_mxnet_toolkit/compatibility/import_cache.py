"""The file of the import cache.

It contains byte code, like ``.pyc`` files, and is in one of two directories: that of this package's
byte code, or ``sagemaker-mxnet-training`` in the user's cache directory (``XDG_CACHE_HOME``, or
``~/.cache``). If neither is writable, there is no cache.

The file starts with its key and a checksum. A truncated file, or one with another key, is ignored
and replaced.
"""

import contextlib
import os
import sys
from importlib.util import cache_from_source, source_hash
from typing import List, Optional, Sequence

from sagemaker_mxnet_toolkit.atomic_files import replacing
from sagemaker_mxnet_toolkit.settings.variables import IMPORT_CACHE


def enabled() -> bool:
    """Return whether the cache is enabled. ``IMPORT_CACHE=0`` disables it."""
    return os.environ.get(IMPORT_CACHE, "").strip() != "0"


def package_directory() -> str:
    """Return the directory of this package's byte code."""
    return os.path.dirname(cache_from_source(__file__))


def default_directories() -> List[str]:
    """Return the directories of the cache file, in order of preference."""
    found = [package_directory()]
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        cache = os.path.join(os.path.expanduser("~"), ".cache")
    if os.path.isabs(cache):
        found.append(os.path.join(cache, "sagemaker-mxnet-training"))
    return found


def path_for(key: bytes, directory: str) -> str:
    """Return the path of the cache file for a key, which has all that the content depends on."""
    name = f"mxnet-operators-{source_hash(key).hex()}.{sys.implementation.cache_tag}"
    return os.path.join(directory, name)


def read(key: bytes, directories: Sequence[str]) -> Optional[bytes]:
    """Return the content for a key, or ``None`` if there is no valid file."""
    for directory in directories:
        with contextlib.suppress(OSError), open(path_for(key, directory), "rb") as file:
            header, content = file.read(len(_header(key, b""))), file.read()
            if header == _header(key, content):
                return content
    return None


def write(key: bytes, content: bytes, directories: Sequence[str]) -> None:
    """Write the content for a key into the first writable directory, if there is one.

    The package's directory is skipped if Python is configured not to write byte code.
    """
    for directory in directories:
        if sys.dont_write_bytecode and directory == package_directory():
            continue
        with contextlib.suppress(OSError):
            os.makedirs(directory, exist_ok=True)
            path = path_for(key, directory)
            with replacing(path, flush=False) as (temporary,), open(temporary, "wb") as file:
                file.write(_header(key, content) + content)
            return


def _header(key: bytes, content: bytes) -> bytes:
    return key + b"\n" + source_hash(content)
