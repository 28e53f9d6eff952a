#!/usr/bin/env bash
# Run other people's MXNet scripts, unchanged, as jobs of one and of two hosts, and report which of them
# run, which do not, and what they end with. Their sources are not part of this repository.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh

usage() {
    cat <<'TEXT'
Usage: scripts/test-scripts.sh [--keep DIR] [--write FILE] DIRECTORY [NAME...]

  DIRECTORY      holds scripts.txt, and for each NAME in it a directory with the script's own files
  NAME           default: all of scripts.txt
  --keep DIR     keep environments, runs and logs in DIR (default: a temporary directory)
  --write FILE   put the table between the marks in FILE, too (docs/libraries.md)

Each line of scripts.txt is

  NAME | SCRIPT | HOSTS | OPTIONS | SOURCE | NOTE

SCRIPT is a path in NAME's directory, HOSTS the numbers of hosts to run it with (1 2), OPTIONS those of
`sagemaker-mxnet-training local`, SOURCE where the script is from, NOTE what to know of a failure. In OPTIONS,
{data} stands for small data in known formats (scripts/made_up_data.py), of which a copy is in `data` beside
the script and in its directory too. Lines with the same NAME make one row.

  PYTHON         interpreter of the environments (default: python3)
  SCRIPT_LIMIT   seconds that a run may take (default: 300)
TEXT
}

fail() {
    echo "test-scripts.sh: $*" >&2
    exit 2
}

keep= write= rows_only=
given=()
while [ $# -gt 0 ]; do
    case $1 in
        --keep) [ $# -ge 2 ] || fail "--keep needs a directory"; mkdir -p "$2"; keep=$(cd "$2" && pwd); shift 2 ;;
        --write) [ $# -ge 2 ] || fail "--write needs a file"; write=$2; shift 2 ;;
        -h | --help) usage; exit ;;
        -*) usage >&2; fail "unknown argument: $1" ;;
        *) given+=("$1"); shift ;;
    esac
done
[ ${#given[@]} -gt 0 ] || { usage >&2; exit 2; }
[ -f "${given[0]}/scripts.txt" ] || fail "there is no ${given[0]}/scripts.txt"
sources=$(cd "${given[0]}" && pwd)
chosen=" ${given[*]:1} "

place=${keep:-$(mktemp -d)}
[ -n "$keep" ] || trap 'rm -rf "$place"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1
make_base "$place/base" scikit-learn
rm -rf "$place/data"
"$place/base/bin/python" scripts/made_up_data.py "$place/data"

# trial NAME SCRIPT HOSTS OPTIONS: one job in an environment of its own; prints what became of it.
trial() {
    local run=$place/$1-$3 code=$place/$1-$3/code options cause
    rm -rf "$run"
    mkdir -p "$run"
    cp -r "$sources/$1" "$code"
    for folder in "$code" "$(dirname "$code/$2")"; do
        [ -e "$folder/data" ] || cp -r "$place/data/files" "$folder/data"
    done
    cp -a "$place/base" "$run/venv"
    read -ra options <<<"${4//\{data\}/$place/data}"
    if timeout --kill-after=60 "${SCRIPT_LIMIT:-300}" "$run/venv/bin/python" -m sagemaker_mxnet_training local \
        --hosts "$3" --run-dir "$run/hosts" --source-dir "$code" \
        --env PYTHONPATH="$PWD/scripts/made_up_data_allowed" ${options[@]+"${options[@]}"} "$2" >"$run/log" 2>&1; then
        echo runs
        return
    fi
    cause=$(head -n 1 "$run"/hosts/algo-1/output/failure 2>/dev/null || tail -n 1 "$run/log")
    # As long as a table has room for, and without this machine's paths.
    cause=$(sed 's# ([^()]*/[^()]*)##g' <<<"$cause" | cut -c -160)
    case $cause in
        *"internal error"*) echo "no, ours: $cause" ;;
        *Connection* | *onnection?refused* | *"name resolution"* | *"Max retries"* | *ownload*) echo "no, the network's: $cause" ;;
        *"worker failed"*) echo "no, the script's: $cause" ;;
        *) echo "no: $cause" ;;
    esac
}

declare -A found source note
names=()
status=0
while IFS='|' read -r name script hosts options origin remark; do
    name=${name// /}
    [ -n "$name" ] && [ "${name#\#}" = "$name" ] || continue
    [ "$chosen" = "  " ] || [[ $chosen == *" $name "* ]] || continue
    script=${script// /}
    [ -f "$sources/$name/$script" ] || fail "there is no $sources/$name/$script"
    [ -n "${source[$name]:-}" ] || names+=("$name")
    source[$name]=$(echo $origin) note[$name]=$(echo $remark)
    for count in $hosts; do
        echo "$name: $script on $count" >&2
        found[$name,$count]=$(trial "$name" "$script" "$count" "$options")
        echo "  ${found[$name,$count]}" >&2
        [ -n "$keep" ] || rm -rf "${place:?}/$name-$count"
        case ${found[$name,$count]} in "no, ours"* | "no: "*) status=1 ;; esac
    done
done <"$sources/scripts.txt"
for name in ${given[@]+"${given[@]:1}"}; do
    [ -n "${source[$name]:-}" ] || fail "there is no $name in ${given[0]}/scripts.txt"
done

heading='import platform, mxnet, numpy
print(f"CPython {platform.python_version()}, NumPy {numpy.__version__}, MXNet {mxnet.__version__}, run on")'
table="$("$place/base/bin/python" -c "$heading") $(date +%Y-%m-%d):"
table+=$'\n\n| script | 1 host | 2 hosts | note |\n|---|---|---|---|'
for name in ${names[@]+"${names[@]}"}; do
    one=${found[$name,1]:--} two=${found[$name,2]:--}
    # A cause is told once.
    cause=
    case $one in no*) cause=${one#*: } one=${one%%:*} ;; esac
    case $two in no*) cause=${cause:-${two#*: }} two=${two%%:*} ;; esac
    text=${note[$name]}
    [ -z "$cause" ] || text="\`${cause//|/}\`${text:+; $text}"
    table+=$'\n'"| ${source[$name]} | $one | $two | $text |"
done
printf '%s\n' "$table"
[ "$chosen" = "  " ] || rows_only=yes
[ -z "$write" ] || TABLE=$table scripts/write-table.py scripts "$write" ${rows_only:+--rows}
exit $status
