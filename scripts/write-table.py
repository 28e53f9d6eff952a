#!/usr/bin/env python3
"""Replace what is between the marks of a name in a Markdown file with $TABLE.

write-table.py NAME FILE [--rows]: the marks are <!-- NAME: begin --> and <!-- NAME: end -->. With
--rows, the table has some of the rows only: they replace those with the same first cell.
"""

import os
import pathlib
import re
import sys


def merged(old, new):
    """Return the lines of a table with the rows of another one in the place of its own."""
    rows = {line.split("|")[1]: line for line in new if line.startswith("| ")}
    return [rows.get(line.split("|")[1], line) if line.startswith("| ") else line for line in old]


name, path, *options = sys.argv[1:]
file = pathlib.Path(path)
text = file.read_text()
begin, end = (f"<!-- {name}: {mark} -->" for mark in ("begin", "end"))
marked = re.compile(f"(?<={re.escape(begin)}\n).*(?={re.escape(end)})", re.DOTALL)
found = marked.findall(text)
if len(found) != 1:
    sys.exit(f"{file}: expected the marks {begin} and {end} once")
table = os.environ["TABLE"].strip("\n").splitlines()
if options == ["--rows"]:
    table = merged(found[0].strip("\n").splitlines(), table)
file.write_text(marked.sub(lambda _: "\n" + "\n".join(table) + "\n\n", text))
