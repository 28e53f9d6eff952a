"""Settings declared once: a frozen dataclass whose fields say default, kind and help.

A setting ``name`` of a package is the hyperparameter ``<prefix><name>`` or the variable of that
name in capitals; the hyperparameter takes precedence. The README's table is made of the same
declarations (``scripts/settings_table.py``).
"""

import dataclasses
from typing import (
    Any,
    Dict,
    FrozenSet,
    Iterable,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
    Type,
    TypeVar,
)

from sagemaker_mxnet_toolkit.settings.faults import Faults, Found, present
from sagemaker_mxnet_toolkit.settings.sources import Sources
from sagemaker_mxnet_toolkit.settings.validation import Kind, Validator
from sagemaker_mxnet_toolkit.settings.variables import COMPONENT_PREFIXES, NOT_SETTINGS

_KEY = "setting"

S = TypeVar("S")
T = TypeVar("T")


class Declaration(NamedTuple):
    """What is said about one setting, apart from its name and default.

    Attributes:
        kind: what is valid.
        help: its meaning, as the README's table has it.
        default_text: the default as the table has it, if not the value itself.
        alias: a hyperparameter of another name that takes precedence; may be empty.
        alias_kind: what is valid for the alias.
        variables: names of its variables, the first takes precedence; if empty, there is one, with
            the settings' prefix.
    """

    kind: Kind[Any]
    help: str
    default_text: str = ""
    alias: str = ""
    alias_kind: Optional[Kind[Any]] = None
    variables: Tuple[str, ...] = ()


def setting(
    default: T,
    kind: Kind[Any],
    help: str,
    *,
    default_text: str = "",
    alias: str = "",
    alias_kind: Optional[Kind[Any]] = None,
    variables: Tuple[str, ...] = (),
    secret: bool = False,
) -> T:
    """Declare a field of a dataclass as a setting. See ``Declaration``.

    Args:
        default: the value if nobody sets it.
        kind: see ``Declaration``.
        help: see ``Declaration``.
        default_text: see ``Declaration``.
        alias: see ``Declaration``.
        alias_kind: see ``Declaration``; ``kind`` by default.
        variables: see ``Declaration``.
        secret: leave it out of the dataclass' ``repr``.
    """
    declaration = Declaration(kind, help, default_text, alias, alias_kind or kind, variables)
    options: Dict[str, Any] = {"repr": not secret, "metadata": {_KEY: declaration}}
    if isinstance(default, dict):
        given: Dict[Any, Any] = default
        options["default_factory"] = lambda: dict(given)
    else:
        options["default"] = default
    field: T = dataclasses.field(**options)
    return field


def declared(settings: Type[Any]) -> Dict[str, Declaration]:
    """Return the declarations of a dataclass, by name. Its other fields are not settings."""
    return {
        field.name: field.metadata[_KEY]
        for field in dataclasses.fields(settings)
        if _KEY in field.metadata
    }


def read(
    settings: Type[S],
    prefix: str,
    sources: Sources,
    hyperparameters: Mapping[str, Found],
    check: Validator,
) -> Tuple[S, FrozenSet[str]]:
    """Return the settings, and the names of those that somebody set.

    Args:
        settings: the dataclass that declares them.
        prefix: what the names of their hyperparameters begin with, such as ``sagemaker_mxnet_``.
        sources: has the variables.
        hyperparameters: all of them, by name; empty for a program that has none.
        check: gets faults, misspelled names among them.
    """
    declarations = declared(settings)
    _report_unknown(declarations, prefix, sources, hyperparameters, check.faults)
    given: Dict[str, Any] = {}
    values: Dict[str, Any] = {}
    default = settings()
    for name, declaration in declarations.items():
        kind = declaration.kind
        found = present(hyperparameters.get(declaration.alias))
        if found is not None and declaration.alias_kind is not None:
            kind = declaration.alias_kind
        else:
            found = present(hyperparameters.get(prefix + name))
            for variable in _variables(prefix, name, declaration):
                found = found or sources.variable(variable)
        if found is not None:
            given[name] = found
        values[name] = check.value(found, kind, getattr(default, name))
    return settings(**values), frozenset(given)


def _report_unknown(
    declarations: Mapping[str, Declaration],
    prefix: str,
    sources: Sources,
    hyperparameters: Mapping[str, Found],
    faults: Faults,
) -> None:
    """Add a fault for each name with the settings' prefix that is not a setting."""
    for name, found in hyperparameters.items():
        if name.startswith(prefix) and name[len(prefix) :] not in declarations:
            faults.add(*_unknown(name, prefix, found.place, declarations))
    prefix = prefix.upper()
    others = tuple(other for other in COMPONENT_PREFIXES if len(other) > len(prefix))
    names = {
        variable
        for name, declaration in declarations.items()
        for variable in _variables(prefix, name, declaration)
    }
    known = sorted(name[len(prefix) :] for name in names if name.startswith(prefix))
    for rest, found in sources.prefixed(prefix):
        ours = rest in known or found.name in NOT_SETTINGS
        if found.value and not ours and not found.name.startswith(others):
            faults.add(*_unknown(found.name, prefix, "a variable", known))


def _variables(prefix: str, name: str, declaration: Declaration) -> Tuple[str, ...]:
    return declaration.variables or ((prefix + name).upper(),)


def _unknown(name: str, prefix: str, place: str, known: Iterable[str]) -> Tuple[str, None, str]:
    """Return the fault of a name that is not a setting.

    The value is not shown: it may be that of a misspelled secret.
    """
    from difflib import get_close_matches  # noqa: PLC0415  (rarely needed)

    shown = name if name.isprintable() and len(name) <= 80 else repr(name[:80])
    near = get_close_matches(name[len(prefix) :], known, 1)
    if near:
        return f"{shown} is not a setting ({place}); did you mean {prefix}{near[0]}?", None, ""
    choice = ", ".join(sorted(known))
    return f"{shown} is not a setting ({place})", None, f"{prefix} and one of {choice}"
