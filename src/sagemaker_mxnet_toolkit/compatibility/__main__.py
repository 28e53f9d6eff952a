"""Fills the import cache beside this package: ``python -m sagemaker_mxnet_toolkit.compatibility``.

This is for images, which one user builds and others run, often with packages in directories that
all can write to, where no process writes a cache of its own accord. The directory of the cache is
made its owner's alone to write to.
"""

import os
import sys

from sagemaker_mxnet_toolkit import compatibility
from sagemaker_mxnet_toolkit.compatibility import cache_file, import_hook, operators


def main() -> int:
    """Import MXNet, which fills the cache, and print the cache's path; return the exit status."""
    place = cache_file.beside_package()
    try:
        os.makedirs(place.directory, exist_ok=True)
        os.chmod(place.directory, 0o755)
    except OSError as error:
        print(f"the import cache cannot be written: {error}", file=sys.stderr)
        return 1
    sys.dont_write_bytecode = False
    import_hook.install()
    import_hook.use_cache([place])
    import mxnet  # noqa: PLC0415

    key = operators.key_of(mxnet.base)
    if key is None or cache_file.read(key, [place]) is None:
        print(
            f"the import cache is not in {place.directory}: expected a directory that can be "
            f"written, and neither {cache_file.VARIABLE} nor {compatibility.VARIABLE} to be 0",
            file=sys.stderr,
        )
        return 1
    print(os.path.join(place.directory, cache_file.name_of(key)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
