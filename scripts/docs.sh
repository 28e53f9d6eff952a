#!/usr/bin/env bash
# Build the documentation into build/docs (open build/docs/index.html). A warning, such as a link to a page
# or a heading that does not exist, is an error. Nothing is fetched; links to other sites are not checked.
set -euo pipefail
. "$(dirname "$0")/help.sh"
cd "$(dirname "$0")/.."
. scripts/venv.sh
make_venv .venv-test mxnet,test
python -m sphinx -q -W --keep-going -d build/doctrees docs build/docs "$@"
