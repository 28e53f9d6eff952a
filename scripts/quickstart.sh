#!/usr/bin/env bash
# Trains scikit-learn's handwritten digits on two hosts, as processes on this machine.
# Sets everything up by itself, in .venv; a second run starts at once. Arguments go to
# `sagemaker-mxnet-training local`.
set -euo pipefail
. "$(dirname "$0")/help.sh"
cd "$(dirname "$0")/.."
. scripts/venv.sh
make_venv .venv mxnet,serving,report
exec sagemaker-mxnet-training local --hosts 2 "$@" examples/digits/train.py
