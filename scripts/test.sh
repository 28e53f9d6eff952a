#!/usr/bin/env bash
# All checks: linter, types, tests. Sets everything up by itself; arguments go to pytest.
#
#   scripts/test.sh                      everything; container tests when a Docker engine answers
#   scripts/test.sh tests/unit -k save   the linter, the type checker and these tests
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
make_venv .venv-test mxnet,test

echo "== ruff"
ruff check .
ruff format --check .
echo "== mypy"
mypy --strict src
echo "== pytest"
# Coverage of subprocesses too, wherever they run: see [tool.coverage.run] in pyproject.toml.
export COVERAGE_FILE="$PWD/.coverage" COVERAGE_RCFILE="$PWD/pyproject.toml"
rm -f .coverage .coverage.*
status=0
check() { python -m coverage run -m pytest "$@" || status=$?; }
if [ $# -gt 0 ]; then
    check "$@"
else
    check -n "${TEST_WORKERS:-auto}" --ignore tests/container
    # One at a time: they compare what is left on the engine with what was there before.
    check tests/container
fi
# A process that a test kills may leave a file without data, about which combine would complain.
python -m coverage combine --quiet 2>/dev/null || true
rm -f .coverage.*
python -m coverage report --skip-covered || true
exit "$status"
