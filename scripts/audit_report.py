"""Judge what pip-audit found by what was decided about it.

audit_report.py DECISIONS LOCK AUDIT: AUDIT is pip-audit's JSON for the lock file LOCK. The exit
status is 0 where all packages were looked up and everything found is decided about, 1 where
something is open, and 3 where the service did not know packages: nothing is known of them.
"""

import datetime
import json
import pathlib
import re
import sys

DECISIONS = ("accepted", "not affected")


def read_decisions(path):
    """Return what was decided, by id and package."""
    decisions = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 5 or fields[2] not in DECISIONS or not fields[4]:
            sys.exit(f"{path}, line {number}: expected ID | PACKAGE | DECISION | DATE | REASON")
        datetime.date.fromisoformat(fields[3])
        decisions[fields[0], fields[1]] = fields[2:]
    return decisions


def main(decisions_path, lock, audit):
    decisions = read_decisions(pathlib.Path(decisions_path))
    made = re.search(r"^# made (\S+)", pathlib.Path(lock).read_text(), re.MULTILINE)
    packages = json.loads(pathlib.Path(audit).read_text())["dependencies"]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    print(f"{lock}: {len(packages)} packages, locked {made[1] if made else 'at an unknown date'}")
    opened = 0
    for package in packages:
        for found in package.get("vulns", ()):
            ids = (found["id"], *found.get("aliases", ()))
            decided = [decisions.get((each, package["name"])) for each in ids]
            decision = next(filter(None, decided), None)
            opened += decision is None
            fixed = ", ".join(found.get("fix_versions", ())) or "no version"
            verdict = "{} ({}): {}".format(*decision) if decision else "OPEN"
            what = f"{package['name']} {package['version']}  {' '.join(ids)}  fixed in {fixed}"
            print(f"  {what}: {verdict}")
    if unknown:
        print(f"  NOT AUDITED, as the service did not know them: {', '.join(unknown)}")
    print(f"  {opened} open among the {len(packages) - len(unknown)} that were looked up")
    return 1 if opened else 3 if unknown else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
