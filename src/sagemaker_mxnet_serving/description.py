"""What a model says about itself, as lines for people."""

from typing import Any, List, Mapping


def lines(description: Mapping[str, Any]) -> List[str]:
    """Return a line for each key of ``Service.describe``."""
    return [f"{name}: {_shown(value)}" for name, value in description.items()]


def _shown(value: Any) -> str:
    """Return a value of a model's description for people: an input as ``x float32 (rows, 784)``."""
    if isinstance(value, Mapping) and "shape" in value:
        shape = value["shape"]
        axes = "unknown" if shape is None else ", ".join(str(n or "rows") for n in shape)
        return f"{value.get('name')} {value.get('dtype')} ({axes})"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_shown, value)) or "none"
    return "none" if value is None else str(value)
