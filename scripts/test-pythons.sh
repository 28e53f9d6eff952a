#!/usr/bin/env bash
# Prove MXNet's behaviour, and that its import cache changes nothing, on every CPython found here, with the oldest and the newest NumPy that
# has a wheel for it. Ends with a table; its exit status is 1 when anything in it failed.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: scripts/test-pythons.sh [--quick] [--quickstart] [--keep DIR] [VERSION...]

  VERSION        such as 3.11; default: each of 3.8 to 3.13 found under pyenv or on PATH
  --quick        only the oldest CPython with its oldest NumPy and the newest with its newest
  --quickstart   also train the example on two hosts with each, as scripts/quickstart.sh does
  --keep DIR     keep the environments in DIR and use them again (default: a temporary directory)
TEXT
}

fail() {
    echo "test-pythons.sh: $*" >&2
    exit 2
}

# The first NumPy with a manylinux x86_64 wheel for each CPython, as listed by the package index.
oldest_numpy() {
    case $1 in
        3.8) echo 1.17.3 ;;
        3.9) echo 1.19.3 ;;
        3.10) echo 1.21.2 ;;
        3.11) echo 1.23.2 ;;
        3.12) echo 1.26.0 ;;
        3.13) echo 2.1.0 ;;
        *) fail "CPython $1 is not one of 3.8 to 3.13" ;;
    esac
}

interpreter() {
    local pyenv=${PYENV_ROOT:-$HOME/.pyenv} found
    for found in "$pyenv/versions/$1."*/bin/python "$(command -v "python$1" || true)"; do
        # pyenv's shims answer for versions that are not selected, too, with an error.
        if [ -x "$found" ] && "$found" -c 'import venv' 2>/dev/null; then
            echo "$found"
            return
        fi
    done
}

quick= quickstart= keep=
versions=()
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=1; shift ;;
        --quickstart) quickstart=1; shift ;;
        --keep) [ $# -ge 2 ] || fail "--keep needs a directory"; mkdir -p "$2"; keep=$(cd "$2" && pwd); shift 2 ;;
        -h | --help) usage; exit ;;
        -*) usage >&2; fail "unknown option: $1" ;;
        *) oldest_numpy "$1" >/dev/null; versions+=("$1"); shift ;;
    esac
done
cd "$(dirname "$0")/.."

if [ ${#versions[@]} -eq 0 ]; then
    for version in 3.8 3.9 3.10 3.11 3.12 3.13; do
        [ -z "$(interpreter $version)" ] || versions+=("$version")
    done
fi
[ ${#versions[@]} -gt 0 ] || fail "no CPython 3.8 to 3.13 under ${PYENV_ROOT:-$HOME/.pyenv} or on PATH"

runs=()
for version in "${versions[@]}"; do
    [ -n "$(interpreter "$version")" ] || fail "no CPython $version under ${PYENV_ROOT:-$HOME/.pyenv} or on PATH"
    runs+=("$version oldest" "$version newest")
done
[ -z "$quick" ] || runs=("${runs[0]}" "${runs[${#runs[@]} - 1]}")

place=${keep:-$(mktemp -d)}
[ -n "$keep" ] || trap 'rm -rf "$place"' EXIT

table=$(printf '%-8s %-8s %-9s %-9s %s' CPython NumPy install behaviour ${quickstart:+quickstart})
status=0

# Run a step, its output kept and shown only when it fails; leaves ok, failed in `result`.
step() {
    local log=$place/$1.log
    shift
    if "$@" >"$log" 2>&1; then
        result=ok
    else
        result=failed
        status=1
        tail -n 60 "$log" >&2
    fi
}

for run in "${runs[@]}"; do
    read -r version which <<<"$run"
    name=$version-$which
    python=$place/$name/bin/python
    case $which in
        oldest) numpy=numpy==$(oldest_numpy "$version") ;;
        newest) numpy=numpy ;;
    esac
    echo "CPython $version, $which NumPy" >&2
    [ -x "$python" ] || "$(interpreter "$version")" -m venv "$place/$name"

    # NumPy from its wheels only: what has to be built for this CPython is not what is asked about.
    step "$name-install" env PIP_ONLY_BINARY=numpy,scipy PIP_UPGRADE=1 PIP_UPGRADE_STRATEGY=only-if-needed \
        scripts/install.sh --python "$python" --numpy "$numpy"
    installed=$result behaviour=- quick_result=-
    if [ "$installed" = ok ]; then
        step "$name-tools" "$python" -m pip install pytest pytest-timeout hypothesis
        step "$name-behaviour" "$python" -m pytest -q -p no:cacheprovider \
            tests/unit/toolkit/compatibility/test_compatibility.py tests/functional/test_mxnet_behaviour.py \
            tests/functional/test_fast_import.py
        behaviour=$result
        if [ -n "$quickstart" ]; then
            # The command of scripts/quickstart.sh, in this environment rather than in .venv.
            step "$name-quickstart" "$place/$name/bin/sagemaker-mxnet-training" local --hosts 2 \
                --run-dir "$place/$name-run" examples/digits/train.py
            quick_result=$result
        fi
    fi
    numpy=$("$python" -c 'import numpy; print(numpy.__version__)' 2>/dev/null || echo none)
    table+=$'\n'$(printf '%-8s %-8s %-9s %-9s %s' "$version" "$numpy" "$installed" "$behaviour" ${quickstart:+"$quick_result"})
done

echo
echo "$table"
exit $status
