#!/usr/bin/env python3
"""Replace what is between the marks of a name in a Markdown file with $TABLE.

write-table.py NAME FILE: the marks are <!-- NAME: begin --> and <!-- NAME: end -->.
"""

import os
import pathlib
import re
import sys

name, path = sys.argv[1:]
file = pathlib.Path(path)
marked = re.compile(rf"(<!-- {name}: begin -->\n).*(<!-- {name}: end -->)", re.DOTALL)
table = os.environ["TABLE"].strip("\n")
text, count = marked.subn(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", file.read_text())
if count != 1:
    sys.exit(f"{file}: expected the marks <!-- {name}: begin --> and <!-- {name}: end --> once")
file.write_text(text)
