"""Files in memory: MXNet 1.9.1 writes its own format to a path only."""

import os
from typing import Any, BinaryIO, Iterator

from sagemaker_mxnet_training.checkpoints.archive import CHUNK


def create(content: bytes = b"") -> BinaryIO:
    """Return a file in memory that holds ``content`` and is gone once it is closed."""
    file = os.fdopen(os.memfd_create("checkpoint"), "w+b")
    file.write(content)
    file.flush()
    return file


def path(file: BinaryIO) -> str:
    """Return a path by which this process can open the file again."""
    return f"/proc/self/fd/{file.fileno()}"


def save_arrays(arrays: Any) -> BinaryIO:
    """Return a file in memory with arrays as ``mxnet.nd.save`` writes them, copied on return."""
    import mxnet  # noqa: PLC0415

    file = create()
    mxnet.nd.save(path(file), arrays)
    return file


def load_arrays(content: bytes) -> Any:
    """Return the arrays in what ``save_arrays`` wrote."""
    import mxnet  # noqa: PLC0415

    return mxnet.nd.load_frombuffer(content)


def chunks(file: BinaryIO) -> Iterator[bytes]:
    """Yield the content from the beginning, and close the file."""
    with file:
        offset = 0
        while True:
            chunk = os.pread(file.fileno(), CHUNK, offset)
            if not chunk:
                return
            offset += len(chunk)
            yield chunk
