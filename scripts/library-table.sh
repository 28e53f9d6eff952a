#!/usr/bin/env bash
# Try the libraries that are built on MXNet, each in an environment of its own with MXNet 1.9.1 and the
# newest NumPy, and write what was found as a table. Every row that says "works" was run.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh

usage() {
    cat <<'TEXT'
Usage: scripts/library-table.sh [--keep DIR] [--write FILE] [LIBRARY...]

  LIBRARY        default: all of scripts/libraries/attempts.txt
  --keep DIR     keep environments and logs in DIR (default: a temporary directory)
  --write FILE   put the table between the marks in FILE, too (docs/libraries.md)

  PYTHON         interpreter of the environments (default: python3)
TEXT
}

fail() {
    echo "library-table.sh: $*" >&2
    exit 2
}

keep= write= rows_only=
chosen=()
while [ $# -gt 0 ]; do
    case $1 in
        --keep) [ $# -ge 2 ] || fail "--keep needs a directory"; mkdir -p "$2"; keep=$(cd "$2" && pwd); shift 2 ;;
        --write) [ $# -ge 2 ] || fail "--write needs a file"; write=$2; shift 2 ;;
        -h | --help) usage; exit ;;
        -*) usage >&2; fail "unknown argument: $1" ;;
        *) chosen+=("$1"); shift ;;
    esac
done

place=${keep:-$(mktemp -d)}
[ -n "$keep" ] || trap 'rm -rf "$place"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1
attempts=scripts/libraries/attempts.txt
rows_only=yes
[ ${#chosen[@]} -gt 0 ] || rows_only=
[ ${#chosen[@]} -gt 0 ] || mapfile -t chosen < <(sed -n 's/^\([a-z0-9-]*\) |.*/\1/p' $attempts | uniq)

make_base "$place/base"
python=$place/base/bin/python

# attempt LIBRARY REQUIREMENTS VARIABLES: a fresh environment, the installation, the program.
attempt() {
    local venv=$place/$1
    rm -rf "$venv"
    cp -a "$place/base" "$venv"
    local requirements variables
    read -ra requirements <<<"$2"
    read -ra variables <<<"$3"
    "$venv/bin/python" -m pip install --prefer-binary "${requirements[@]}" || return
    # From its standard input: a file named like a library would be imported in its place.
    env "${variables[@]}" "$venv/bin/python" - <"scripts/libraries/$1.py"
}

version() {
    "$place/$1/bin/python" -c 'import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))' "$1" 2>/dev/null || echo -
}

remark() {
    "$python" -c '
import sys
from sagemaker_mxnet_toolkit.requirements.known import REMARKS
print(REMARKS.get(sys.argv[1], ""))' "$1"
}

rows=
status=0
for library in "${chosen[@]}"; do
    [ -e "scripts/libraries/$library.py" ] || fail "there is no scripts/libraries/$library.py"
    number=0 works=
    while IFS='|' read -r name requirements variables; do
        [ "${name// /}" = "$library" ] || continue
        number=$((number + 1))
        log=$place/$library-$number.log
        echo "$library: attempt $number:$requirements" >&2
        if attempt "$library" "$requirements" "$variables" >"$log" 2>&1; then
            works=$number
            break
        fi
        tail -n 1 "$log" >&2
    done < <(grep -v '^#' $attempts)
    text=$(remark "$library") found=$(version "$library")
    if [ -n "$works" ]; then
        verdict=${text:+works with a remedy}
        verdict=${verdict:-works}
    else
        verdict=cannot
    fi
    # A failure that nothing is known about is news, and so is a remedy that is not needed any more.
    if [ -z "$text" ] && [ "$verdict" = cannot ]; then
        status=1
        text=$(tail -n 1 "$log")
    fi
    rows+="| $library | $found | $verdict | $text |"$'\n'
    [ -n "$keep" ] || rm -rf "${place:?}/$library"
done

heading='import platform, mxnet, numpy
print(f"CPython {platform.python_version()}, NumPy {numpy.__version__}, MXNet {mxnet.__version__}, tried on")'
table="$("$python" -c "$heading") $(date +%Y-%m-%d):"
table+=$'\n\n| library | version | | remedy, or why not |\n|---|---|---|---|\n'$rows
printf '%s' "$table"
[ -z "$write" ] || TABLE=$table scripts/write-table.py libraries "$write" ${rows_only:+--rows}
exit $status
