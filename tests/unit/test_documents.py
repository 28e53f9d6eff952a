"""Links between the documents of the repository; ``scripts/docs.sh`` checks those of the site."""

import re
import subprocess
from pathlib import Path
from typing import Iterator, Set, Tuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def documents() -> Iterator[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", "*.md"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:  # not a clone: an archive
        yield from (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
    yield from (ROOT / name for name in done.stdout.split() if (ROOT / name).exists())


def anchors(document: Path) -> Set[str]:
    """Return the names that GitHub gives to the headings."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = (re.sub(r"[^\w\- ]", "", found.lower()) for found in HEADING.findall(text))
    return {heading.strip().replace(" ", "-") for heading in headings}


def links(document: Path) -> Iterator[Tuple[str, str]]:
    for target in LINK.findall(CODE.sub("`", document.read_text(encoding="utf-8"))):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, anchor = target.partition("#")
            yield path, anchor


@pytest.mark.parametrize("document", list(documents()), ids=lambda path: path.name)
def test_links_between_documents_work(document: Path) -> None:
    for path, anchor in links(document):
        target = document.parent / path if path else document
        assert target.exists(), f"{document.name} links to {path}, which does not exist"
        if anchor:
            assert anchor in anchors(target), f"{document.name} links to {path}#{anchor}"
