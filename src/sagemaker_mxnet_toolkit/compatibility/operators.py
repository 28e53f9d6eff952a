"""The functions that MXNet generates for its operators, from a cache.

At each import MXNet writes the source of some 2,000 functions, from what its native library says of
each operator, and compiles it. All that differs from one import to the next is the operator's
handle, a number in the function's constants. The cache holds the compiled functions without it; a
function that cannot be put together again exactly is made by MXNet, as all are where there is no
cache.

The cache serves ``import mxnet`` alone. ``mx.library.load``, which may give an operator another
form, calls MXNet's own functions.
"""

import marshal
import os
import re
import sys
from importlib.util import MAGIC_NUMBER, source_hash
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple

from sagemaker_mxnet_toolkit import __version__
from sagemaker_mxnet_toolkit.compatibility import cache_file

MODULES = frozenset(
    (
        "mxnet.ndarray.numpy._register",
        "mxnet.ndarray.numpy_extension._register",
        "mxnet.ndarray.register",
        "mxnet.numpy._register",
        "mxnet.numpy_extension._register",
        "mxnet.symbol.numpy._register",
        "mxnet.symbol.numpy_extension._register",
        "mxnet.symbol.register",
    )
)
"""MXNet's modules that have functions generated while they are executed."""

# What the text of a function depends on, beside the library.
_SOURCES = (
    "base.py",
    "ndarray/register.py",
    "ndarray_doc.py",
    "symbol/register.py",
    "symbol_doc.py",
)

# To be raised when what is stored changes its form.
_FORMAT = 1

# Name of the function that makes it, of the operator and of the function.
_Key = Tuple[str, str, str]


class _Stored(NamedTuple):
    """A generated function without its handle, in what ``marshal`` can write.

    Attributes:
        code: its code, with 0 for the handle.
        position: where the handle is in the code's constants.
        defaults: its defaults, with ``...`` for ``mxnet.base._Null``.
        module: its ``__module__`` as the maker leaves it.
        documentation: its docstring.
    """

    code: CodeType
    position: int
    defaults: Optional[Tuple[Any, ...]]
    module: str
    documentation: Optional[str]


class Operators:
    """The functions of one ``import mxnet``.

    Attributes:
        cached: how many functions came from the cache.
    """

    def __init__(self, base: Any, places: Sequence[cache_file.Place]) -> None:
        """Look for a cache that fits the module ``mxnet.base``, in ``places``."""
        self.cached = 0
        self._base = base
        self._places = places
        self._key = key_of(base)
        content = None if self._key is None else cache_file.read(self._key, places)
        self._stored = _loaded(content)
        self._unusable = content is not None and not self._stored
        self._new: Dict[_Key, _Stored] = {}
        self._code: Dict[_Key, CodeType] = {}

    def importing(self, import_: Callable[..., Any]) -> Callable[..., Any]:
        """Return an ``__import__`` under which a module of ``MODULES`` is to be executed."""
        view = SimpleNamespace(**vars(self._base))
        view._init_op_module = self._init_op_module
        view._init_np_op_module = self._init_np_op_module

        def import_view(*arguments: Any, **options: Any) -> Any:
            module = import_(*arguments, **options)
            return view if module is self._base else module

        return import_view

    def restore(self, scope: Dict[str, Any]) -> None:
        """Give a module that was executed MXNet's own functions back."""
        for name in ("_init_op_module", "_init_np_op_module"):
            if name in scope:
                scope[name] = getattr(self._base, name)

    def save(self) -> None:
        """Write the cache if it lacked something."""
        if self._new and self._key is not None:
            stored = {**self._stored, **self._new}
            texts: Dict[str, str] = {}
            content = {key: tuple(_with_shared(texts, each)) for key, each in stored.items()}
            cache_file.write(self._key, marshal.dumps(content), self._places, self._unusable)

    def _init_op_module(self, root: str, module: str, make_op_func: FunctionType) -> None:
        self._base._init_op_module(root, module, self._caching(make_op_func))

    def _init_np_op_module(self, *, make_op_func: FunctionType, **names: Any) -> None:
        self._base._init_np_op_module(**names, make_op_func=self._caching(make_op_func))

    def _caching(self, make: FunctionType) -> Callable[[Any, str, str], FunctionType]:
        """Return a function that gives what ``make`` would."""
        scope, null = make.__globals__, self._base._Null

        def make_or_rebuild(handle: Any, name: str, func_name: str) -> FunctionType:
            key = (make.__name__, name, func_name)
            stored = self._stored.get(key)
            if stored is not None:
                self.cached += 1
                code = self._code.get(key)
                if code is None:
                    code = self._code[key] = _with_handle(stored, handle.value)
                return _rebuilt(stored, code, scope, null)
            made: FunctionType = make(handle, name, func_name)
            new = _stored(made, handle.value, scope, null)
            if new is not None:
                self._new[key] = new
            return made

        return make_or_rebuild


def _with_handle(stored: _Stored, handle: int) -> CodeType:
    constants = stored.code.co_consts
    before, after = constants[: stored.position], constants[stored.position + 1 :]
    return stored.code.replace(co_consts=(*before, handle, *after))


def _rebuilt(stored: _Stored, code: CodeType, scope: Dict[str, Any], null: Any) -> FunctionType:
    defaults = stored.defaults
    if defaults is not None:
        defaults = tuple(null if each is ... else each for each in defaults)
    function = FunctionType(code, scope, code.co_name, defaults)
    function.__doc__ = stored.documentation
    function.__module__ = stored.module
    return function


def _stored(
    function: FunctionType, handle: int, scope: Dict[str, Any], null: Any
) -> Optional[_Stored]:
    """Return what rebuilds a function exactly, or None where that cannot be done."""
    code, defaults = function.__code__, function.__defaults__
    positions = [
        position
        for position, constant in enumerate(code.co_consts)
        if type(constant) is int and constant == handle
    ]
    if len(positions) != 1:
        return None
    if defaults is not None:
        defaults = tuple(... if each is null else each for each in defaults)
    stored = _Stored(code, positions[0], defaults, function.__module__, function.__doc__)
    stored = stored._replace(code=_with_handle(stored, 0))
    rebuilt = _rebuilt(stored, _with_handle(stored, handle), scope, null)
    return stored if _attributes(rebuilt) == _attributes(function) else None


def _with_shared(texts: Dict[str, str], stored: _Stored) -> _Stored:
    """Make equal texts one object, which ``marshal`` writes once: many docstrings are alike."""

    def shared(value: Any) -> Any:
        return texts.setdefault(value, value) if isinstance(value, str) else value

    code = stored.code.replace(co_consts=tuple(map(shared, stored.code.co_consts)))
    return stored._replace(code=code, documentation=shared(stored.documentation))


def _attributes(function: FunctionType) -> Tuple[Any, ...]:
    """Return all that can differ between two functions of the same module."""
    return (
        function.__code__,
        function.__defaults__,
        function.__kwdefaults__,
        function.__closure__,
        function.__annotations__,
        function.__dict__,
        function.__name__,
        function.__qualname__,
        function.__module__,
        function.__doc__,
        id(function.__globals__),
    )


def _loaded(content: Optional[bytes]) -> Dict[_Key, _Stored]:
    if content is None:
        return {}
    try:
        return {name: _Stored(*each) for name, each in marshal.loads(content).items()}
    except (AttributeError, EOFError, TypeError, ValueError):
        return {}


def key_of(base: Any) -> Optional[bytes]:
    """Return what MXNet's generated functions depend on, or None where that cannot be told.

    NumPy is not in it: the functions look it up when they are called.
    """
    folder = os.path.dirname(base.__file__)
    hashes = []
    try:
        for name in _SOURCES:
            with open(os.path.join(folder, name), "rb") as file:
                hashes.append(source_hash(file.read()).hex())
        library = _library_identity(base._LIB._name)
    except OSError:
        return None
    tag = sys.implementation.cache_tag
    if tag is None:
        return None
    python = f"{tag} {MAGIC_NUMBER.hex()} optimize={sys.flags.optimize}"
    layer = f"sagemaker-mxnet-operators {_FORMAT} {__version__}"
    return " ".join((layer, python, library, *hashes)).encode()


def _library_identity(path: str) -> str:
    """Return what tells one build of the library from another, wherever the file is.

    That is its size and the build ID that the linker made from its content. Where there is none it
    is the file's time, in whole seconds because images keep no more.
    """
    with open(path, "rb") as file:
        found = re.search(rb"\x14\0\0\0\x03\0\0\0GNU\0(.{20})", file.read(4096), re.DOTALL)
        status = os.fstat(file.fileno())
    build = found.group(1).hex() if found else str(int(status.st_mtime))
    return f"{status.st_size} {build}"
