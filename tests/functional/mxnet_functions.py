"""Write down all that a script can see of MXNet's generated functions; run as a program.

    mxnet_functions.py PATH CACHE

CACHE is the directory of the import cache.
Two files are equal where no script could tell the functions apart. The only part of a function that
differs from one process to the next, its operator's handle, is written as the operator's names.
PATH is in ``marshal``'s format, which has code objects: comparing these is much faster than
comparing their descriptions. What ``inspect``, ``pydoc`` and ``pickle`` say follows from the parts
that are written for each function, so that they are asked about a sample only.
"""

import ctypes
import functools
import inspect
import marshal
import pickle
import pydoc
import re
import sys
import types

from sagemaker_mxnet_toolkit.compatibility import import_hook, status

import_hook.install()
import_hook.use_cache([sys.argv[2]])

import mxnet  # noqa: E402, F401
from mxnet.base import _LIB, OpHandle, check_call  # noqa: E402

SAMPLE = 100
"""One of so many functions is described in full."""


def operator_names():
    """Return the names of all operators by handle."""
    size, names = ctypes.c_uint(), ctypes.POINTER(ctypes.c_char_p)()
    check_call(_LIB.MXListAllOpNames(ctypes.byref(size), ctypes.byref(names)))
    found = {}
    for name in names[: size.value]:
        handle = OpHandle()
        check_call(_LIB.NNGetOpHandle(name, ctypes.byref(handle)))
        found.setdefault(handle.value, []).append(name.decode())
    return {handle: tuple(names) for handle, names in found.items()}


OPERATORS = operator_names()


def attempt(call, *arguments):
    try:
        return call(*arguments)
    except Exception as error:
        return re.sub(" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {error}")


def constant(value):
    if isinstance(value, types.CodeType):
        return code(value)
    return OPERATORS.get(value, value) if type(value) is int else value


def code(value):
    """Return a code object with names in the place of handles."""
    return value.replace(co_consts=tuple(map(constant, value.co_consts)))


@functools.lru_cache(maxsize=None)
def builtins_of(module):
    builtins = vars(sys.modules[module])["__builtins__"]
    return [*sorted(builtins), builtins["__import__"].__qualname__]


def function(value, names):
    """Return all that makes up a function in a module."""
    scope = value.__globals__
    described = {
        name: repr(getattr(value, name))
        for name in (
            "__annotations__",
            "__closure__",
            "__defaults__",
            "__dict__",
            "__doc__",
            "__kwdefaults__",
            "__module__",
            "__name__",
            "__qualname__",
        )
    }
    described["attributes"] = dir(value)
    described["code"] = code(value.__code__)
    described["globals"] = scope["__name__"]
    described["is in sys.modules"] = scope is vars(sys.modules[scope["__name__"]])
    described["builtins"] = builtins_of(scope["__name__"])
    described["own builtins"] = (
        getattr(value, "__builtins__", scope["__builtins__"]) is scope["__builtins__"]
    )
    described["names"] = names
    return described


def in_words(value):
    """Return what inspect, pydoc and pickle say of a function."""
    return {
        "argspec": repr(attempt(inspect.getfullargspec, value)),
        "file": attempt(inspect.getfile, value),
        "help": pydoc.plain(attempt(pydoc.render_doc, value)),
        "pickle": attempt(pickle.dumps, value),
        "signature": str(attempt(inspect.signature, value)),
        "source": [attempt(inspect.getsource, value), attempt(inspect.getsourcefile, value)],
    }


def main():
    functions, modules = {}, {}
    for name, module in sorted(sys.modules.items()):
        if name != "mxnet" and not name.startswith("mxnet."):
            continue
        modules[name] = (
            [
                # The stand-in of a module is a module.
                (key, "module" if isinstance(value, types.ModuleType) else type(value).__name__)
                for key, value in vars(module).items()
            ],
            list(getattr(module, "__all__", ())),
        )
        for key, value in vars(module).items():
            if isinstance(value, types.FunctionType) and value.__code__.co_filename == "<string>":
                functions.setdefault(id(value), (value, []))[1].append(f"{name}.{key}")
    described = {names[0]: function(value, names) for value, names in functions.values()}
    for value, names in list(functions.values())[::SAMPLE]:
        described[names[0]].update(in_words(value))
    seen = {"cached": status().cached, "functions": described, "modules": modules}
    with open(sys.argv[1], "wb") as file:
        marshal.dump(seen, file)


if __name__ == "__main__":
    main()
