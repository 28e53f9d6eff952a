#!/usr/bin/env bash
# Measures this toolkit beside AWS's, the released sagemaker-mxnet-training 4.3.0, on the same jobs.
#
#   scripts/benchmark.sh [--against COMMIT] [--json] [--rounds N] [--only NAME]...
#   scripts/benchmark.sh --serving [--rounds N] [--seconds N] [--only MODEL]...
#
# With --against, the reference is an earlier commit of this toolkit instead. --serving measures the
# model server beside AWS's, sagemaker-mxnet-inference 1.5.5 with multi-model-server 1.1.11; it needs
# java and wrk (Debian: apt-get install default-jre-headless wrk).
#
# Each toolkit gets an environment of its own, with the same Python, MXNet and NumPy. Ports 8000 and
# 8001 of the loopback interface must be free. PYTHON names the interpreter (default: python3):
# CPython 3.8 to 3.11, since the NumPy that the peer's MXNet needs has no wheel for later ones.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(not (3, 8) <= sys.version_info < (3, 12))' || {
    echo "$("$PYTHON" --version): expected CPython 3.8 to 3.11, where both toolkits run; set PYTHON" >&2
    exit 1
}

# environment DIRECTORY STAMP PACKAGE...: made anew where the stamp has changed.
environment() {
    local directory=$1 stamp=$2
    shift 2
    stamp="$("$PYTHON" --version) $stamp"
    [ "$(cat "$directory/.stamp" 2>/dev/null)" = "$stamp" ] && return
    echo "making an environment in $directory ..." >&2
    rm -rf "$directory"
    "$PYTHON" -m venv "$directory"
    "$directory/bin/pip" install --quiet --disable-pip-version-check --upgrade pip
    "$directory/bin/pip" install --quiet --disable-pip-version-check --prefer-binary "$@"
    echo "$stamp" > "$directory/.stamp"
}

if [ "${1:-}" = --serving ]; then
    shift
    # 1.6.1 is the last sagemaker-inference that this peer works with.
    environment .venv-peer-serving "1" sagemaker-mxnet-inference==1.5.5 sagemaker-inference==1.6.1 \
        multi-model-server==1.1.11 'mxnet==1.9.1' 'numpy==1.23.5'
    environment .venv-benchmark-serving "1 $(cat setup.py pyproject.toml | cksum)" '.[mxnet,onnx,serving]' \
        'mxnet==1.9.1' 'numpy==1.23.5' uvicorn
    .venv-benchmark-serving/bin/pip install --quiet --disable-pip-version-check --no-deps \
        --force-reinstall .
    exec .venv-benchmark-serving/bin/python -m benchmarks.serving \
        --peer .venv-peer-serving/bin/python "$@"
fi
if [ "${1:-}" = --against ]; then
    commit=$(git rev-parse --verify "$2^{commit}")
    shift 2
    sources=$(mktemp -d)
    trap 'rm -rf "$sources"' EXIT
    git archive "$commit" | tar -x -C "$sources"
    environment .venv-earlier "1 $commit" "$sources[mxnet]" 'mxnet==1.9.1' 'numpy<1.24'
    reference=(--earlier .venv-earlier/bin/python)
else
    environment .venv-peer "1" sagemaker-mxnet-training==4.3.0 sagemaker-training==5.1.4 \
        retrying==1.3.3 'mxnet==1.9.1' 'numpy<1.24'
    reference=(--peer .venv-peer/bin/python)
fi
environment .venv-benchmark "1 $(cat setup.py pyproject.toml | cksum)" '.[mxnet]' 'mxnet==1.9.1' 'numpy<1.24'
.venv-benchmark/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
if [[ " $* " == *" horovod "* ]]; then
    scripts/horovod-wheel.sh .venv-benchmark
fi
.venv-benchmark/bin/python -m benchmarks "${reference[@]}" "$@"
