"""Fills the package's import cache: ``python -m sagemaker_mxnet_toolkit.compatibility``.

For images, whose jobs may run as a user that cannot write to the package's directory.
"""

import sys

from sagemaker_mxnet_toolkit.compatibility import import_cache, import_hook
from sagemaker_mxnet_toolkit.settings.variables import COMPATIBILITY, IMPORT_CACHE


def main() -> int:
    """Import MXNet to fill the cache, and print the cache's path; return the exit status."""
    directory = import_cache.package_directory()
    sys.dont_write_bytecode = False
    import_hook.install()
    import_hook.use_cache([directory])
    import mxnet

    key = import_cache.key_of(mxnet.base)
    if key is None or import_cache.read(key, [directory]) is None:
        print(
            f"the import cache was not written to {directory}; expected a writable directory, "
            f"and neither {IMPORT_CACHE} nor {COMPATIBILITY} set to 0",
            file=sys.stderr,
        )
        return 1
    print(import_cache.path_for(key, directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
