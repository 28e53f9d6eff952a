"""Write down all that a script can see of MXNet's generated functions; run as a program.

    mxnet_functions.py PATH CACHE

CACHE is the directory of the import cache.
Two files are equal where no script could tell the functions apart. The only part of a function that
differs from one process to the next, its operator's handle, is written as the operator's names.
"""

import ctypes
import inspect
import json
import os
import pickle
import pydoc
import re
import sys
import types

from sagemaker_mxnet_toolkit.compatibility import cache_file, import_hook, status

import_hook.install()
import_hook.use_cache([cache_file.Place(sys.argv[2], frozenset((os.geteuid(),)), private=True)])

import mxnet  # noqa: E402, F401
from mxnet.base import _LIB, OpHandle, check_call  # noqa: E402


def operator_names():
    """Return the names of all operators by handle."""
    size, names = ctypes.c_uint(), ctypes.POINTER(ctypes.c_char_p)()
    check_call(_LIB.MXListAllOpNames(ctypes.byref(size), ctypes.byref(names)))
    found = {}
    for name in names[: size.value]:
        handle = OpHandle()
        check_call(_LIB.NNGetOpHandle(name, ctypes.byref(handle)))
        found.setdefault(handle.value, []).append(name.decode())
    return found


OPERATORS = operator_names()


def attempt(call, *arguments):
    try:
        return call(*arguments)
    except Exception as error:
        return re.sub(" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {error}")


def constant(value):
    if isinstance(value, types.CodeType):
        return code(value)
    return f"{type(value).__name__} {value!r}"


def code(value):
    described = {}
    for name in dir(value):
        part = getattr(value, name)
        if name == "co_consts":
            part = [OPERATORS.get(each) or constant(each) for each in part]
        elif name in ("co_lines", "co_positions"):
            part = list(part())
        elif name in ("_co_code_adaptive", "co_lnotab") or not name.startswith("co_"):
            continue
        described[name] = repr(part)
    return described


def function(value, names):
    """Describe a function in a module as Python, inspect, pydoc and pickle do."""
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
    described["globals"] = value.__globals__["__name__"]
    described["is in sys.modules"] = value.__globals__ is vars(
        sys.modules[value.__globals__["__name__"]]
    )
    builtins = value.__globals__["__builtins__"]
    described["builtins"] = sorted(builtins), builtins["__import__"].__qualname__
    described["own builtins"] = getattr(value, "__builtins__", builtins) is builtins
    described["signature"] = attempt(lambda: str(inspect.signature(value)))
    described["argspec"] = repr(attempt(inspect.getfullargspec, value))
    described["source"] = attempt(inspect.getsource, value), attempt(inspect.getsourcefile, value)
    described["file"] = attempt(inspect.getfile, value)
    described["pickle"] = attempt(lambda: pickle.dumps(value).hex())
    described["help"] = pydoc.plain(attempt(pydoc.render_doc, value))
    described["names"] = names
    return described


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
    seen = {"cached": status().cached, "functions": described, "modules": modules}
    with open(sys.argv[1], "w") as file:
        json.dump(seen, file)


if __name__ == "__main__":
    main()
