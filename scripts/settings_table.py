"""Writes the tables of settings into the documents, from the settings' declarations.

python scripts/settings_table.py            # writes them
python scripts/settings_table.py --check    # fails if one is not up to date
"""

import sys
from pathlib import Path

from sagemaker_mxnet_serving.front.server_settings import PREFIX, ServerSettings
from sagemaker_mxnet_toolkit.settings.declaration import declared
from sagemaker_mxnet_training.config.job_settings import Settings

ROOT = Path(__file__).resolve().parents[1]

# Document, name of the markers around its table, the dataclass that declares the settings, and
# what a name begins with in the table, in capitals if that is the prefix of variables.
TABLES = [
    ("docs/configuration.md", "settings", Settings, ""),
    ("docs/serving.md", "settings", ServerSettings, PREFIX),
]


def table(settings, prefix):
    lines = ["| name | default | meaning |", "|---|---|---|"]
    for name, declaration in declared(settings).items():
        default = getattr(settings(), name)
        text = declaration.default_text or f"{default:g} {declaration.kind.unit}".rstrip()
        own = prefix + name.upper() if prefix else name
        label = ", ".join(f"`{each}`" for each in declaration.variables or (own,))
        lines.append(f"| {label} | {text} | {declaration.help} |")
    return "\n".join(lines)


def updated(text, marker, settings, prefix):
    begin, end = f"<!-- {marker}: begin -->\n", f"\n<!-- {marker}: end -->"
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise SystemExit(f"the markers of the table {marker!r} are missing")
    return before + begin + "\n" + table(settings, prefix) + "\n" + end + after


def main(check):
    for document, marker, settings, prefix in TABLES:
        path = ROOT / document
        text = path.read_text(encoding="utf-8")
        new = updated(text, marker, settings, prefix)
        if new != text and check:
            raise SystemExit(f"{document} is not up to date: run scripts/settings_table.py")
        if new != text:
            path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
