"""The user's script: where it is, and the functions it defines."""

import importlib.util
import inspect
import os
import sys
import traceback
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

from sagemaker_mxnet_serving.errors import ModelError

DEFAULT_PROGRAM = "inference.py"

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
"""The functions that ``transform_fn`` stands for."""


@dataclass(frozen=True)
class Function:
    """A function of the script.

    Attributes:
        name: its name.
        function: the function.
        extras: its parameters beyond the usual ones, and what each gets: ``context`` or ``model``.
    """

    name: str
    function: Callable[..., Any]
    extras: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: Any, **known: Any) -> Any:
        """Call it with its usual arguments, and with those of ``known`` that it asks for."""
        extras = {name: known[kind] for name, kind in self.extras.items()}
        return self.function(*arguments, **extras)


@dataclass(frozen=True)
class Script:
    """The user's script, imported.

    Attributes:
        path: where it is; None where there is none.
        functions: those it defines, by name.
    """

    path: Optional[str] = None
    functions: Mapping[str, Function] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Optional[Function]:
        return self.functions.get(name)

    @property
    def handles_requests(self) -> bool:
        """Whether any function of the user's takes part in answering a request."""
        return any(self[name] for name in (*STEPS, "transform_fn"))


def find_script(code_dir: str, program: str) -> Optional[str]:
    """Return the path of the script, or None where there is none and none is asked for.

    Args:
        code_dir: where the code is.
        program: its name below ``code_dir``. Of an absolute path, which the SageMaker SDK gives in
            local mode and which is the host's, the file name counts. Empty: ``inference.py``.

    Raises:
        ModelError: when a script is asked for by name and is not there.
    """
    name = os.path.normpath(program) if program else DEFAULT_PROGRAM
    candidates = [name] if not (os.path.isabs(name) or name.startswith("..")) else []
    candidates.append(os.path.basename(name))
    for candidate in candidates:
        path = os.path.join(code_dir, candidate)
        if os.path.isfile(path):
            return path
    if not program:
        return None
    found = ", ".join(sorted(os.listdir(code_dir))[:20]) if os.path.isdir(code_dir) else ""
    raise ModelError(
        f"there is no script {candidates[-1]} in {code_dir} (found: {found or 'nothing'}); "
        f"SAGEMAKER_PROGRAM is {program!r}: expected a file of that directory"
    )


def load_script(code_dir: str, program: str, model_dir: str) -> Script:
    """Import the script, and check its functions.

    On the path are ``code_dir`` and ``lib`` in it, and ``code/lib`` of the model directory, where
    the SageMaker SDK puts ``dependencies``, also where it leaves the code itself elsewhere.

    Raises:
        ModelError: when it is not there, cannot be imported, or its functions do not go together.
    """
    path = find_script(code_dir, program)
    libraries = (os.path.join(model_dir, "code", "lib"), os.path.join(code_dir, "lib"))
    for folder in (*libraries, code_dir):
        if os.path.isdir(folder) and folder not in sys.path:
            sys.path.insert(0, folder)
    if path is None:
        return Script()
    module = _import(path)
    functions: Dict[str, Function] = {}
    for name, arguments in _ARGUMENTS.items():
        function = getattr(module, name, None)
        if function is not None:
            functions[name] = _adapt(name, function, arguments, path)
    steps = [name for name in STEPS if name in functions]
    if "transform_fn" in functions and steps:
        raise ModelError(
            f"{path} defines transform_fn and {', '.join(steps)}: expected either transform_fn, "
            "which does all of it, or input_fn, predict_fn and output_fn; remove one kind"
        )
    return Script(path, functions)


def script_failed(what: str, error: BaseException) -> ModelError:
    """Make a ``ModelError`` of what the script raised, with its own traceback.

    Args:
        what: what the script did, such as ``model_fn of /opt/ml/model/code/inference.py``.
        error: what it raised.
    """
    return ModelError(
        f"{what} raised {type(error).__name__}, so the model cannot be served; "
        f"expected it to end without an error. Its traceback:\n{user_traceback(error)}"
    )


def user_traceback(error: BaseException) -> str:
    """Return a traceback that begins in the script, not in this package or Python's importing."""
    entry = error.__traceback__
    hidden = (os.path.dirname(os.path.abspath(__file__)), "<frozen importlib")
    while entry is not None and entry.tb_frame.f_code.co_filename.startswith(hidden):
        entry = entry.tb_next
    return "".join(traceback.format_exception(type(error), error, entry)).rstrip()


def _import(path: str) -> Any:
    name = os.path.splitext(os.path.basename(path))[0]
    if name in sys.modules:  # such as a script that is called json.py
        name = f"_script_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is not a Python script; expected a file whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as the import system does: pickle looks there
    # Nothing is written into the model directory, by what the script imports later neither.
    sys.dont_write_bytecode = True
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise script_failed(f"importing {path}", error) from error
    return module


def _adapt(name: str, function: Any, arguments: Sequence[str], path: str) -> Function:
    """Find out what a function of the script wants to be called with."""
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
            f"{path}: {name} takes ({', '.join(p.name for p in parameters)}); "
            f"expected {usual}, or a last argument context besides"
        )
    return Function(name, function, extras)
