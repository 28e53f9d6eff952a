#!/usr/bin/env bash
# Build and check a release, and tag it: scripts/release.sh [--dry-run]
#
# The version is __version__ in src/sagemaker_mxnet_toolkit/__init__.py. The script builds the source
# distribution and, from it, the wheel into dist/, runs `twine check`, installs the wheel into a new environment
# and runs the program, then creates the tag v<version>. It uploads and pushes nothing, and prints the commands
# that do. Before it builds anything it requires a clean checkout, a section "## [<version>] - <date>" in
# CHANGELOG.md, and a version that is not tagged yet. With --dry-run these are warnings, and no tag is created.
set -euo pipefail
. "$(dirname "$0")/help.sh"
cd "$(dirname "$0")/.."

say() { echo "release.sh: $*" >&2; }
fail() { say "$*"; exit 1; }

dry_run=
case ${1:-} in
    --dry-run) dry_run=1 ;;
    "") ;;
    *) say "unknown argument: $1 (expected --dry-run or nothing)"; exit 2 ;;
esac
# require MESSAGE COMMAND...: the command succeeds, or the release ends; a dry run only warns.
require() {
    local message=$1
    shift
    if "$@"; then return; fi
    if [ -n "$dry_run" ]; then say "warning: $message"; else fail "$message"; fi
}

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' src/sagemaker_mxnet_toolkit/__init__.py)
[ -n "$version" ] || fail "src/sagemaker_mxnet_toolkit/__init__.py has no line __version__ = \"...\""
tag=v$version

is_clean() { [ -z "$(git status --porcelain)" ]; }
is_dated() { grep -qE "^## \[${version//./\\.}\] - [0-9]{4}-[0-9]{2}-[0-9]{2}$" CHANGELOG.md; }
is_new() { ! git rev-parse --quiet --verify "refs/tags/$tag" >/dev/null; }
require "the checkout has uncommitted changes (git status): commit or remove them" is_clean
require "CHANGELOG.md has no section '## [$version] - YYYY-MM-DD': give Unreleased that heading" is_dated
require "the tag $tag exists: raise __version__" is_new

work=$(mktemp -d "${TMPDIR:-/tmp}/release.XXXXXX")
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}

say "building $version"
"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet --disable-pip-version-check --no-compile build twine
# From a copy of what is committed, so that no file of the checkout gets in by accident.
mkdir "$work/source"
git archive HEAD | tar -x -C "$work/source"
"$work/tools/bin/python" -m build --outdir "$work/dist" "$work/source" >"$work/log" 2>&1 ||
    { tail -n 20 "$work/log" >&2; fail "the build failed; its last lines are above"; }
"$work/tools/bin/twine" check --strict "$work"/dist/*

say "trying the wheel, which was built from the source distribution"
"$python" -m venv "$work/try"
"$work/try/bin/pip" install --quiet --disable-pip-version-check --no-deps "$work"/dist/*.whl
found=$("$work/try/bin/sagemaker-mxnet-training" --version)
[ "$found" = "sagemaker-mxnet-training $version" ] ||
    fail "the program of the wheel says '$found', expected version $version"
compgen -G "$work/try/lib/python3*/site-packages/sagemaker-mxnet-training.pth" >/dev/null ||
    fail "the wheel has no import hook, sagemaker-mxnet-training.pth"
rm -rf dist
cp -r "$work/dist" dist

if [ -n "$dry_run" ]; then
    say "dist/ has $version; nothing was tagged (--dry-run)"
    exit
fi
git tag -a "$tag" -m "$version"
cat <<TEXT
tagged $tag; to publish it:
  git push origin $tag
  twine upload --repository-url INDEX dist/*
  scripts/build-image.sh --tag REGISTRY/mxnet-training:$version && docker push REGISTRY/mxnet-training:$version
TEXT
