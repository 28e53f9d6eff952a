"""Imports the inference script, and checks the functions that it defines."""

import asyncio
import difflib
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import sys
import traceback
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, AsyncIterator, Callable, Dict, Iterator, Mapping, Optional, Sequence, Tuple

from sagemaker_mxnet_serving.inference import ModelError
from sagemaker_mxnet_serving.model_directory import (
    DEFAULT_PROGRAM,
    CodeLocation,
    found_below,
    is_module,
)
from sagemaker_mxnet_toolkit import tracebacks
from sagemaker_mxnet_toolkit.requirements import known

_ARGUMENTS: Mapping[str, Tuple[str, ...]] = {
    "pre_model_fn": ("model_dir",),
    "model_fn": ("model_dir",),
    "model_warmup_fn": ("model_dir", "model"),
    "input_fn": ("body", "content_type"),
    "predict_fn": ("data", "model"),
    "output_fn": ("prediction", "accept"),
    "transform_fn": ("model", "body", "content_type", "accept"),
}

STEPS = ("input_fn", "predict_fn", "output_fn")
"""The functions that ``transform_fn`` replaces."""


@dataclass(frozen=True)
class Function:
    """A function of the script.

    Attributes:
        name: its name.
        function: the function.
        extras: its additional parameters, and their values: ``context`` or ``model``.
    """

    name: str
    function: Callable[..., Any]
    extras: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: Any, **known: Any) -> Any:
        """Call it with its usual arguments, and with those of ``known`` that it has parameters for.

        The result of an ``async`` function is awaited.
        """
        extras = {name: known[kind] for name, kind in self.extras.items()}
        result = self.function(*arguments, **extras)
        if inspect.isasyncgen(result):
            result = _collect(result)
        if inspect.isawaitable(result):
            return _event_loop(os.getpid()).run_until_complete(result)
        return result


async def _collect(results: AsyncIterator[Any]) -> Iterator[Any]:
    return iter([each async for each in results])


@functools.lru_cache(maxsize=None)
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the event loop of a process, which all calls share.

    A forked process cannot use the loop of its parent.
    """
    return asyncio.new_event_loop()


@dataclass(frozen=True)
class Script:
    """The imported script.

    Attributes:
        path: its path; None without a script.
        functions: the functions that it defines, by name.
    """

    path: Optional[str] = None
    functions: Mapping[str, Function] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Optional[Function]:
        return self.functions.get(name)

    @property
    def handles_requests(self) -> bool:
        """Whether any function of the script handles requests."""
        return any(self[name] for name in (*STEPS, "transform_fn"))


def load_script(location: CodeLocation, program: str) -> Script:
    """Import the script, and check its functions.

    ``sys.path`` gets the script's directory, the code directory and its ``lib``, the model
    directory, and its ``code/lib``, where the SageMaker SDK puts ``dependencies`` even if the code
    is elsewhere.

    Args:
        location: where the script is.
        program: its name in the settings; empty for the default.

    Raises:
        ModelError: it is missing, cannot be imported, or has functions that exclude each other.
    """
    libraries = (
        os.path.join(location.model_dir, "code", "lib"),
        os.path.join(location.code_dir, "lib"),
    )
    folders = [location.model_dir, *libraries, location.code_dir]
    if location.script is not None:
        folders.append(os.path.dirname(location.script))
    for folder in folders:
        if os.path.isdir(folder) and folder not in sys.path:
            sys.path.insert(0, folder)
    # Imports must not write byte code into the model directory.
    sys.dont_write_bytecode = True
    if location.script is not None:
        module = _import(location.script, _module_name(location, program))
    elif is_module(program):
        module = _import_installed(location, program)
    elif program:
        raise _not_found(location, program)
    else:
        _note_unused(location.code_dir)
        return Script()
    path = location.script or str(getattr(module, "__file__", program))
    functions: Dict[str, Function] = {}
    for name, arguments in _ARGUMENTS.items():
        function = getattr(module, name, None)
        if function is not None:
            functions[name] = _adapt(name, function, arguments, path)
    _note_misspelled(module, path)
    steps = [name for name in STEPS if name in functions]
    if "transform_fn" in functions and steps:
        raise ModelError(
            f"{path} defines transform_fn and {', '.join(steps)}: expected either transform_fn, or "
            "input_fn, predict_fn and output_fn, which it replaces; remove one kind"
        )
    return Script(path, functions)


def script_failed(what: str, error: BaseException) -> ModelError:
    """Return a ``ModelError`` for an exception of the script, with its traceback.

    Args:
        what: what raised it, such as ``model_fn of /opt/ml/model/code/inference.py``.
        error: what it raised.
    """
    trace = user_traceback(error)
    remedy = known.remedy(f"{tracebacks.summary(error)}\n{trace}")
    return ModelError(
        f"{what} raised {type(error).__name__}{f'; {remedy}' if remedy else ''}. "
        f"The traceback:\n{trace}"
    )


def user_traceback(error: BaseException) -> str:
    """Return a traceback without the frames of this package and of Python's import system."""
    entry = error.__traceback__
    hidden = (os.path.dirname(os.path.abspath(__file__)), "<frozen importlib")
    while entry is not None and entry.tb_frame.f_code.co_filename.startswith(hidden):
        entry = entry.tb_next
    return "".join(traceback.format_exception(type(error), error, entry)).rstrip()


def show_log_records(level: int) -> None:
    """Write the script's log records to stderr, unless it configures ``logging`` itself.

    Not by a handler of the root logger, with which ``logging.basicConfig`` in the script would have
    no effect.
    """
    logging.getLogger().setLevel(level)
    logging.lastResort = logging.StreamHandler()
    logging.lastResort.setFormatter(logging.Formatter(logging.BASIC_FORMAT))


def _module_name(location: CodeLocation, program: str) -> Optional[str]:
    """Return the dotted name of a script in a package; None for one outside of packages."""
    assert location.script is not None
    parts = os.path.splitext(os.path.relpath(location.script, location.code_dir))[0].split(os.sep)
    if parts[-1] == "__init__":
        parts.pop()
    elif len(parts) == 1:
        return None
    folders = [os.path.join(location.code_dir, *parts[:end]) for end in range(1, len(parts))]
    packages = all(os.path.isfile(os.path.join(folder, "__init__.py")) for folder in folders)
    return ".".join(parts) if packages or is_module(program) else None


def _import(path: str, dotted: Optional[str]) -> Any:
    """Import a script; one in a package by its dotted name, so that it can import its siblings."""
    name = dotted or os.path.splitext(os.path.basename(path))[0]
    if dotted is None and name in sys.modules:  # for example a script with the name json.py
        name = f"_script_{name}"
    try:
        if dotted is not None:
            return importlib.import_module(dotted)
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ModelError(
                f"{path} is not a Python script; expected a file with the extension .py"
            )
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before it runs, as the import system does: pickle looks there
        spec.loader.exec_module(module)
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise script_failed(f"importing {path}", error) from error
    return module


def _import_installed(location: CodeLocation, program: str) -> Any:
    """Import a script that is an installed module."""
    try:
        return importlib.import_module(program)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{program}.".startswith(f"{error.name}."):
            raise _not_found(location, program) from None
        raise script_failed(f"importing {program}", error) from error
    except (Exception, SystemExit) as error:
        raise script_failed(f"importing {program}", error) from error


def _not_found(location: CodeLocation, program: str) -> ModelError:
    several = found_below(location.code_dir, program)
    if several:
        return ModelError(
            f"SAGEMAKER_PROGRAM={program!r} matches {len(several)} scripts below "
            f"{location.code_dir}: "
            f"{', '.join(os.path.relpath(path, location.code_dir) for path in several[:20])}; "
            "set it to one of these paths"
        )
    folders = dict.fromkeys((location.code_dir, location.model_dir))
    found = "; ".join(f"{folder} has {_listing(folder)}" for folder in folders)
    return ModelError(
        f"the script {program!r} of SAGEMAKER_PROGRAM was not found ({found}); "
        "set it to a file in one of these directories, or to the name of a module"
    )


def _note_unused(code_dir: str) -> None:
    """Log that there are scripts, but none with the default name."""
    names = os.listdir(code_dir) if os.path.isdir(code_dir) else []
    scripts = sorted(name for name in names if name.endswith(".py"))
    if scripts:
        print(
            f"no script is used: {code_dir} has {', '.join(scripts[:20])}, but no "
            f"{DEFAULT_PROGRAM}; set SAGEMAKER_PROGRAM to the name of the script to use",
            file=sys.stderr,
        )


def _note_misspelled(module: ModuleType, path: str) -> None:
    """Log functions of the script whose names look like misspelled ones."""
    for name, value in vars(module).items():
        close = difflib.get_close_matches(name, _ARGUMENTS, 1, cutoff=0.8)
        if close and inspect.isfunction(value) and close[0] not in vars(module):
            text = f"{path} defines {name}, which is never called; did you mean {close[0]}?"
            print(text, file=sys.stderr)


def _listing(folder: str) -> str:
    names = sorted(os.listdir(folder))[:20] if os.path.isdir(folder) else []
    return ", ".join(names) or "nothing"


def _adapt(name: str, function: Any, arguments: Sequence[str], path: str) -> Function:
    """Check the parameters of a function of the script."""
    usual = f"{name}({', '.join(arguments)})"
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise ModelError(f"{path}: {name} is not a function; expected {usual}") from None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = positional[len(arguments) :] + [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    extras = {}
    for each in rest:
        if name == "input_fn" and each.name == "model":
            extras[each.name] = "model"
        elif each.name == "context" or each.default is each.empty:
            extras[each.name] = "context"
    enough = len(positional) >= len(arguments) or any(
        p.kind is p.VAR_POSITIONAL for p in parameters
    )
    if not enough or list(extras.values()).count("context") > 1:
        raise ModelError(
            f"{path}: {name} has the parameters ({', '.join(p.name for p in parameters)}); "
            f"expected {usual}, and optionally context as the last one"
        )
    return Function(name, function, extras)
