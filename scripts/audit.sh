#!/usr/bin/env bash
# List the known vulnerabilities of what the images lock, with what was decided about each
# (docker/requirements/decisions.txt), and the date of each lock.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'TEXT'
Usage: scripts/audit.sh [--service NAME] [LOCK...]

  LOCK             default: tools.txt, cpu.txt and gpu.txt of docker/requirements
  --service NAME   whom pip-audit asks: pypi (default; PyPI's JSON API), osv or esms

Exit status: 0, everything found is decided about; 1, something is open; 2, it could not be tried; 3, the
service could not be reached, or did not know some of the packages, so that nothing can be said of them.
TEXT
}

service=pypi
locks=()
while [ $# -gt 0 ]; do
    case $1 in
        --service) [ $# -ge 2 ] || { usage >&2; exit 2; }; service=$2; shift 2 ;;
        -h | --help) usage; exit ;;
        -*) usage >&2; echo "audit.sh: unknown argument: $1" >&2; exit 2 ;;
        *) locks+=("$1"); shift ;;
    esac
done
[ ${#locks[@]} -gt 0 ] || locks=(docker/requirements/{tools,cpu,gpu}.txt)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! { "${PYTHON:-python3}" -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet 'pip-audit>=2.7,<3'; } >"$work/log" 2>&1; then
    tail -n 5 "$work/log" >&2
    echo "audit.sh: pip-audit cannot be installed; pip's last lines are above" >&2
    exit 2
fi

status=0
for lock in "${locks[@]}"; do
    # Its exit status 1 means both "something found" and "failed": what it wrote tells which.
    "$work/venv/bin/pip-audit" --vulnerability-service "$service" --disable-pip --require-hashes \
        --requirement "$lock" --format json --output "$work/audit.json" --progress-spinner off \
        >"$work/log" 2>&1 || true
    if [ ! -s "$work/audit.json" ]; then
        echo "$lock: NOT AUDITED: pip-audit could not ask the service '$service': $(tail -n 1 "$work/log")"
        result=3
    else
        result=0
        "$work/venv/bin/python" scripts/audit_report.py docker/requirements/decisions.txt "$lock" "$work/audit.json" || result=$?
        rm "$work/audit.json"
    fi
    # What is open weighs more than what could not be looked up.
    case $status-$result in 0-* | 3-1 | 3-2) status=$result ;; esac
done
[ $status -ne 3 ] || echo "audit.sh: nothing is known of the packages that were not audited: try where the service answers" >&2
exit $status
