#!/usr/bin/env bash
# Writes docker/requirements/{tools,cpu,gpu,horovod,horovod-tools,sbom}.txt: every package of the images,
# and of what builds and describes them, pinned and hashed.
# Run it to take newer versions; commit what it writes.
set -euo pipefail
# shellcheck source=scripts/help.sh
. "$(dirname "$0")/help.sh"
# shellcheck source=scripts/engine.sh
. "$(dirname "$0")/engine.sh"
cd "$(dirname "$0")/.."
[ $# = 0 ] || { say "unknown argument: $1 (it takes none)"; exit 2; }

# The Python of each image's default base: Debian 12's and Ubuntu 22.04's.
CPU_PYTHON=3.11
GPU_PYTHON=3.10

work=$(mktemp -d "${TMPDIR:-/tmp}/lock-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if ! { python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet 'uv>=0.5,<1'; } >"$work/log" 2>&1; then
  tail -n 5 "$work/log" >&2
  die "uv, which resolves the lock, cannot be installed; pip's last lines are above" \
    "see that python3 has venv (Debian, Ubuntu: apt-get install python3-venv) and that pip reaches its index"
fi

# Metadata is read from a copy: setuptools writes into the checkout.
mkdir "$work/checkout"
cp -r setup.py pyproject.toml README.md LICENSE src "$work/checkout"

# lock PYTHON OUTPUT INPUT...
lock() {
  local python=$1 output=docker/requirements/$2
  shift 2
  (
    echo "# Written by scripts/lock-image.sh; do not edit."
    echo "# python $python"
    echo "# made $(date +%F)"
    UV_DEFAULT_INDEX=${PIP_INDEX_URL:-${UV_DEFAULT_INDEX:-}} "$work/venv/bin/uv" pip compile --quiet \
      --python-version "$python" --python-platform x86_64-manylinux_2_28 --generate-hashes \
      --no-header --no-annotate "$@"
  ) >"$work/lock" || die "no set of versions for $output; uv's reason is above"
  mv "$work/lock" "$output"
  say "$output: $(grep -c == "$output") packages for Python $python"
}

mxnet=(--overrides docker/requirements/overrides.txt -c docker/requirements/tools.txt)
lock "$CPU_PYTHON" tools.txt docker/requirements/tools.in
lock "$CPU_PYTHON" cpu.txt "$work/checkout/pyproject.toml" --extra mxnet --extra serving docker/requirements/preinstalled.in "${mxnet[@]}"
lock "$GPU_PYTHON" gpu.txt "$work/checkout/pyproject.toml" --extra serving docker/requirements/gpu.in docker/requirements/preinstalled.in "${mxnet[@]}"
lock "$CPU_PYTHON" horovod.txt --no-deps docker/requirements/horovod.in
lock "$CPU_PYTHON" horovod-tools.txt --no-deps docker/requirements/horovod-tools.in
# For the older Python: what only that one needs does no harm on the other.
lock "$GPU_PYTHON" sbom.txt docker/requirements/sbom.in -c docker/requirements/tools.txt
