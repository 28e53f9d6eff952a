#!/usr/bin/env bash
# Builds Horovod for MXNet, without MPI, and installs it into a virtual environment that has MXNet.
#
#   scripts/horovod-wheel.sh DIRECTORY            the environment, such as .venv-test
#   scripts/horovod-wheel.sh --build DIRECTORY    only builds the wheel for it
#
# Horovod is compiled from source: two to five minutes, with a C++ compiler and make. The wheel is kept in
# ~/.cache/sagemaker-mxnet-training (XDG_CACHE_HOME), by Horovod's version and Python's.
set -euo pipefail
# shellcheck source=scripts/help.sh
. "$(dirname "$0")/help.sh"
cd "$(dirname "$0")/.."
install=1
if [ "${1:-}" = --build ]; then
    install=
    shift
fi
[ $# = 1 ] || { echo "horovod-wheel.sh: expected one argument, a virtual environment" >&2; exit 2; }
python=$1/bin/python
"$python" -c 'import mxnet' || { echo "horovod-wheel.sh: $1 cannot import mxnet, see above" >&2; exit 1; }
! "$python" -c 'import horovod.mxnet' 2>/dev/null || exit 0

requirement=$(grep -h '^horovod==' docker/requirements/horovod.in)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sagemaker-mxnet-training
tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
kept() { compgen -G "$cache/${requirement/==/-}-$tag-*.whl" | head -n 1; }

if ! kept >/dev/null; then
    for tool in g++ make; do
        command -v "$tool" >/dev/null || { echo "horovod-wheel.sh: $tool is missing" >&2; exit 1; }
    done
    work=$(mktemp -d "${TMPDIR:-/tmp}/horovod-wheel.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # The build has an environment of its own, which also imports mxnet from the given one: its CMake files
    # find mxnet by an import.
    "$python" -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check cmake packaging setuptools wheel
    own=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    given=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "import site; site.addsitedir('$given')" >"$own/given.pth"
    # CMAKE_POLICY_VERSION_MINIMUM: Horovod's CMake files are older than CMake 4.
    # -s: the library has 1.5 MB without debug symbols, and 47 MB with them.
    PATH=$work/venv/bin:$PATH CMAKE_POLICY_VERSION_MINIMUM=3.5 LDFLAGS=-s MAKEFLAGS="-j$(nproc)" \
        HOROVOD_WITH_MXNET=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 \
        HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 \
        pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-cache-dir \
        --wheel-dir "$work/wheel" "$requirement"
    mkdir -p "$cache"
    mv "$work"/wheel/*.whl "$cache"
fi
[ -z "$install" ] ||
    "$1/bin/pip" install --quiet --disable-pip-version-check "$(kept)" cloudpickle pyyaml --no-deps
