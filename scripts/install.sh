#!/usr/bin/env bash
# Install this checkout and MXNet 1.9.1 into a Python environment, with any NumPy.
#
# mxnet's metadata asks for numpy<2, which has no wheel for CPython 3.13, and pip has no way to
# overrule it but to install mxnet without its dependencies. That is all there is to it:
# its other two dependencies are named here, and the package's compatibility layer does the rest.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: scripts/install.sh [--python PYTHON] [--extras NAMES] [--numpy REQUIREMENT]

  --python PYTHON       interpreter of the environment to install into (default: python3)
  --extras NAMES        serving, report, onnx, with commas between them (default: none)
  --numpy REQUIREMENT   for example 'numpy<2' or numpy==1.26.4 (default: numpy)
TEXT
}

fail() {
    echo "install.sh: $*" >&2
    exit 2
}

python=python3
numpy=numpy
extras=
while [ $# -gt 0 ]; do
    case $1 in
        --python) [ $# -ge 2 ] || fail "--python needs an interpreter"; python=$2; shift 2 ;;
        --extras) [ $# -ge 2 ] || fail "--extras needs names"; extras="[$2]"; shift 2 ;;
        --numpy) [ $# -ge 2 ] || fail "--numpy needs a requirement"; numpy=$2; shift 2 ;;
        -h | --help) usage; exit ;;
        *) usage >&2; fail "unknown argument: $1" ;;
    esac
done
command -v "$python" >/dev/null || fail "no interpreter $python: name one with --python"
checkout=$(cd "$(dirname "$0")/.." && pwd)

"$python" -m pip install --prefer-binary "$checkout$extras" "$numpy" 'graphviz<0.9' 'requests<3'
"$python" -m pip install --no-deps mxnet==1.9.1
"$python" -c '
import platform, mxnet, numpy
print("MXNet", mxnet.__version__, "works with NumPy", numpy.__version__, "on CPython", platform.python_version())
'
