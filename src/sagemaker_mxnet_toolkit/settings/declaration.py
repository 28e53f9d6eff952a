"""Declarations of settings: fields of a frozen dataclass, with default, kind and help.

A setting ``name`` is read from the hyperparameter ``<prefix><name>`` or from the environment
variable of that name in capitals; the hyperparameter takes precedence.
``scripts/settings_table.py`` generates the documentation from the declarations.
"""

import dataclasses
from difflib import get_close_matches
from typing import (
    Any,
    Dict,
    FrozenSet,
    Iterable,
    Mapping,
    NamedTuple,
    Optional,
    Set,
    Tuple,
    Type,
    TypeVar,
)

from sagemaker_mxnet_toolkit.settings.sources import Faults, Found, Sources, non_empty
from sagemaker_mxnet_toolkit.settings.validation import Kind, Validator
from sagemaker_mxnet_toolkit.settings.variables import COMPONENT_PREFIXES, NOT_SETTINGS

_KEY = "setting"

S = TypeVar("S")
T = TypeVar("T")


class Declaration(NamedTuple):
    """The declaration of one setting, apart from its name and default.

    Attributes:
        kind: valid values.
        help: description for the documentation.
        default_text: the default as the documentation shows it, if not the value itself.
        alias: another hyperparameter, which takes precedence; may be empty.
        alias_kind: valid values of the alias.
        variables: environment variables, the first takes precedence; by default one, named after
            the setting.
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
    """Declare a field of a dataclass as a setting (see ``Declaration``).

    A secret is left out of the dataclass' ``repr``. ``alias_kind`` is ``kind`` by default.
    """
    declaration = Declaration(kind, help, default_text, alias, alias_kind or kind, variables)
    options: Dict[str, Any] = {"repr": not secret, "metadata": {_KEY: declaration}}
    if isinstance(default, dict):
        template: Dict[Any, Any] = default
        options["default_factory"] = lambda: dict(template)
    else:
        options["default"] = default
    field: T = dataclasses.field(**options)
    return field


def declared(settings: Type[Any]) -> Dict[str, Declaration]:
    """Return the declarations of a dataclass by name, without fields that are not settings."""
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
    """Return the settings, and the names of those that are set explicitly.

    Args:
        settings: the dataclass that declares them.
        prefix: prefix of their hyperparameters, such as ``sagemaker_mxnet_``.
        sources: provides environment variables.
        hyperparameters: all hyperparameters by name; empty for a program without any.
        check: collects faults, including misspelled names.
    """
    declarations = declared(settings)
    _report_unknown(declarations, prefix, sources, hyperparameters, check.faults)
    explicit: Set[str] = set()
    values: Dict[str, Any] = {}
    default = settings()
    for name, declaration in declarations.items():
        kind = declaration.kind
        found = non_empty(hyperparameters.get(declaration.alias))
        if found is not None and declaration.alias_kind is not None:
            kind = declaration.alias_kind
        else:
            found = non_empty(hyperparameters.get(prefix + name))
            for variable in _variables(prefix, name, declaration):
                found = found or sources.variable(variable)
        if found is not None:
            explicit.add(name)
        values[name] = check.value(found, kind, getattr(default, name))
    return settings(**values), frozenset(explicit)


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
            faults.add(*_unknown(name, prefix, found.source, declarations))
    prefix = prefix.upper()
    others = tuple(other for other in COMPONENT_PREFIXES if len(other) > len(prefix))
    names = {
        variable
        for name, declaration in declarations.items()
        for variable in _variables(prefix, name, declaration)
    }
    known = sorted(name[len(prefix) :] for name in names if name.startswith(prefix))
    for rest, found in sources.prefixed(prefix):
        expected = rest in known or found.name in NOT_SETTINGS
        if found.value and not expected and not found.name.startswith(others):
            faults.add(*_unknown(found.name, prefix, "environment variable", known))


def _variables(prefix: str, name: str, declaration: Declaration) -> Tuple[str, ...]:
    return declaration.variables or ((prefix + name).upper(),)


def _unknown(name: str, prefix: str, source: str, known: Iterable[str]) -> Tuple[str, None, str]:
    """Return the fault for a name that is not a setting.

    The value is not shown, since the setting may be a misspelled secret.
    """
    shown = name if name.isprintable() and len(name) <= 80 else repr(name[:80])
    near = get_close_matches(name[len(prefix) :], known, 1)
    if near:
        return f"{shown} is not a setting ({source}); did you mean {prefix}{near[0]}?", None, ""
    choice = ", ".join(sorted(known))
    return f"{shown} is not a setting ({source})", None, f"{prefix} followed by one of {choice}"
