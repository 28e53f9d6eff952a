"""Virtual environments for temporary installations, and a way to run pip."""

import os
import shlex
import site
import sys
import venv

_PIP = """\
#!/bin/sh
exec "$(dirname "$0")/python" -c {program} "$@"
"""


def pip_program(metadata: str = "") -> str:
    """Return a program for ``python -c`` that runs pip.

    The working directory is the code directory. ``python -m`` would import modules of the user
    that have the names of pip's or of the standard library's. (``-P`` requires CPython 3.11.)

    Args:
        metadata: a directory with metadata that overrides that of installed packages.
    """
    first = f"sys.path.insert(0, {metadata!r}); " if metadata else ""
    return (
        f"import sys; sys.path[:1] == [''] and sys.path.pop(0); {first}import runpy; "
        "runpy.run_module('pip', run_name='__main__', alter_sys=True)"
    )


def installation_notice(purpose: str, directory: str) -> str:
    """Return a message for users that requirements do not change their packages.

    Args:
        purpose: what the environment is for: ``run`` or ``server``.
        directory: the environment.
    """
    return (
        f"requirements are installed for this {purpose} only, in {directory}; "
        f"the packages in {sys.prefix} are not changed"
    )


def create_environment(directory: str) -> str:
    """Create a virtual environment that includes the packages of this one.

    ``local`` and ``serve --model-dir`` use it if the code has requirements. Packages that pip
    installs there take precedence. An existing environment is replaced. (``--system-site-packages``
    would include the packages of the base Python, not those of this virtual environment.)

    Returns:
        The path of its interpreter.

    Raises:
        OSError: it cannot be written.
    """
    venv.create(directory, clear=True, symlinks=True)
    python = os.path.join(directory, "bin", "python")
    packages = list(site.getsitepackages())
    if site.ENABLE_USER_SITE:
        packages.append(site.getusersitepackages())
    version = "python{}.{}".format(*sys.version_info)
    shown = os.path.join(directory, "lib", version, "site-packages", "outer.pth")
    with open(shown, "w", encoding="utf-8") as file:
        # addsitedir also reads .pth files: editable installations, and our import hook.
        file.write(f"import site; list(map(site.addsitedir, {packages!r}))\n")
    for name in ("pip", "pip3"):
        path = os.path.join(directory, "bin", name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(_PIP.format(program=shlex.quote(pip_program())))
        os.chmod(path, 0o755)
    return python
