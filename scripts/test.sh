#!/usr/bin/env bash
# All checks: linter, types, tests. Sets everything up by itself; arguments go to pytest.
#
#   scripts/test.sh                      everything; container tests when a Docker engine answers
#   scripts/test.sh tests/unit -k save   the linter, the type checker and these tests
#   COVERAGE=1 scripts/test.sh ...       and which lines they ran, of subprocesses too: twice the time
set -euo pipefail
. "$(dirname "$0")/help.sh"
cd "$(dirname "$0")/.."
. scripts/venv.sh
make_venv .venv-test mxnet,test

# The image takes minutes to build, and waits for downloads during most of them: it is built beside
# what comes first. tests/container asks for it in the same way, and finds it in the engine's cache.
building=
if [ $# -eq 0 ] && docker version >/dev/null 2>&1; then
    echo "== image (in the background)"
    PIP_TRUSTED_HOST=mark-of-this-site.invalid nice scripts/build-image.sh >/dev/null 2>&1 &
    building=$!
    trap 'kill "$building" 2>/dev/null || true' EXIT
fi

echo "== ruff"
ruff check .
ruff format --check .
echo "== mypy"
mypy --strict src
echo "== pytest"
if [ -n "${COVERAGE:-}" ]; then
    # For subprocesses too, wherever they run: see [tool.coverage.run] in pyproject.toml.
    export COVERAGE_FILE="$PWD/.coverage" COVERAGE_RCFILE="$PWD/pyproject.toml"
    rm -f .coverage .coverage.*
fi
status=0
check() { python ${COVERAGE:+-m coverage run} -m pytest "$@" || status=$?; }
if [ $# -gt 0 ]; then
    check "$@"
else
    # More than there are CPUs: most tests wait for the processes that they start.
    check -n "${TEST_WORKERS:-$((2 * $(nproc)))}" --durations 15 --ignore tests/container
    [ -z "$building" ] || wait "$building" || true  # what is wrong with it, the tests tell
    # One at a time: they compare what is left on the engine with what was there before.
    check --durations 15 tests/container
fi
if [ -n "${COVERAGE:-}" ]; then
    # A process that a test kills may leave a file without data, about which combine would complain.
    python -m coverage combine --quiet 2>/dev/null || true
    rm -f .coverage.*
    python -m coverage report --skip-covered || true
fi
exit "$status"
