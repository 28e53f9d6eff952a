#!/usr/bin/env bash
# All checks: linter, types, documentation, tests. Sets everything up by itself; arguments go to pytest.
#
#   scripts/test.sh                      everything; container tests when a Docker engine answers
#   scripts/test.sh --fast               about three minutes: linter, types, unit tests and a part of the others
#   scripts/test.sh tests/unit -k save   the linter, the type checker and these tests
#   COVERAGE=1 scripts/test.sh ...       and which lines they ran, of subprocesses too: twice the time
set -euo pipefail
. "$(dirname "$0")/help.sh"
cd "$(dirname "$0")/.."
. scripts/venv.sh
make_venv .venv-test mxnet,test
# Without byte code each worker, and each server that a test starts, would compile all sources again.
unset PYTHONDONTWRITEBYTECODE

# More than there are CPUs: most tests wait for the processes that they start.
workers=${TEST_WORKERS:-$((2 * $(nproc)))}
if [ "${1:-}" = --fast ]; then
    # Every module, and real jobs, kills, checkpoints and servers once each.
    set -- -n "$workers" tests/unit tests/functional/test_contract.py tests/functional/test_local.py \
        tests/endings/test_success.py tests/survival/test_killed.py tests/serving/test_contract.py "${@:2}"
fi

status=0
if [ -n "${COVERAGE:-}" ]; then
    # For subprocesses too, wherever they run: see [tool.coverage.run] in pyproject.toml.
    export COVERAGE_FILE="$PWD/.coverage" COVERAGE_RCFILE="$PWD/pyproject.toml"
    rm -f .coverage .coverage.*
fi
check() { python ${COVERAGE:+-m coverage run} -m pytest "$@"; }

# The images take minutes to build, and wait for downloads during most of them: they are built during
# the first tests. tests/container asks for them in the same way, and finds them in the engine's cache.
# The SDKs' local mode has one network for all, so its tests run one by one, beside all others: they are
# the longest part. Horovod is compiled here too, and installed when the tests without it are done.
horovod=
local_mode=
trap 'exit 130' INT # pytest handles Ctrl-C and exits as after failures, and bash would go on
set -m # each in a process group of its own, which Ctrl-C does not reach: the trap passes it on
trap 'for group in $horovod $local_mode; do kill -INT -- "-$group" 2>/dev/null && wait "$group"; done || true' EXIT
if [ $# -eq 0 ]; then
    if { command -v g++ && command -v make; } >/dev/null; then
        echo "== Horovod (in the background)"
        nice scripts/horovod-wheel.sh --build .venv-test </dev/null >.venv-test/horovod.log 2>&1 &
        horovod=$!
    else
        echo "== Horovod cannot be compiled without g++ and make: its tests are skipped"
        [ -z "${CI:-}" ] || status=1 # in CI nothing is skipped
    fi
    if docker version >/dev/null 2>&1; then
        echo "== images and the SDKs' local mode (in the background)"
        exec 9>.venv-test/images.lock
        flock 9 # until the images are built
        (
            trap 'exit 130' INT # a subshell has none of its parent's traps
            (
                export PIP_TRUSTED_HOST=mark-of-this-site.invalid
                scripts/build-image.sh && scripts/build-image.sh --horovod && python -m tests.support.sdks
            ) >.venv-test/images.log 2>&1 || true # what fails here fails in the tests again, which report it
            flock --unlock 9
            check --durations 15 -m local_mode tests/container
        ) </dev/null >.venv-test/local-mode.log 2>&1 &
        local_mode=$!
        exec 9>&- # held by the background job alone
    fi
fi
set +m

echo "== ruff"
ruff check .
ruff format --check .
echo "== mypy"
mypy --strict src
if [ $# -eq 0 ]; then
    echo "== docs"
    scripts/docs.sh
fi
echo "== pytest"
if [ $# -gt 0 ]; then
    check "$@" || status=$?
else
    many=(-n "$workers" --durations 15)
    # Work stealing: neighbours, which share servers and other fixtures, stay in one worker.
    check "${many[@]}" --dist worksteal --ignore tests/container -m "not horovod" || status=$?
    if [ -n "$horovod" ] && ! { wait "$horovod" && scripts/horovod-wheel.sh .venv-test; }; then
        cat .venv-test/horovod.log
        status=1
    fi
    horovod=
    flock .venv-test/images.lock true # waits until the images are built
    echo "== pytest: containers and Horovod"
    # Only files that have such tests: each worker reads all that are named.
    horovod_tests=$(grep -rl --include='test_*.py' pytest.mark.horovod tests)
    # shellcheck disable=SC2086 # several words
    check "${many[@]}" --dist worksteal -m "horovod or container and not local_mode" \
        tests/container $horovod_tests || status=$?
    if [ -n "$local_mode" ]; then
        echo "== pytest: the SDKs' local mode"
        wait "$local_mode" || status=$?
        local_mode=
        cat .venv-test/local-mode.log
    fi
fi
if [ -n "${COVERAGE:-}" ]; then
    # A process that a test kills may leave a file without data, about which combine would complain.
    python -m coverage combine --quiet 2>/dev/null || true
    rm -f .coverage.*
    python -m coverage report --skip-covered || true
fi
exit "$status"
