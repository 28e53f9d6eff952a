# Sourced by the other scripts: makes a virtual environment once, and puts it on PATH.
#
#   make_venv DIRECTORY EXTRAS   installs this checkout, editable, and MXNet, with pyproject.toml's extras
#
# PYTHON names the interpreter (default: python3). A second call with nothing changed does nothing.

make_venv() {
    local directory=$1 extra=$2 python=${PYTHON:-python3} stamp
    stamp="$("$python" --version) $extra $(cat setup.py pyproject.toml | cksum)"
    if [ "$(cat "$directory/.stamp" 2>/dev/null)" != "$stamp" ]; then
        if ! "$python" -c 'import sys; sys.exit(not (3, 8) <= sys.version_info < (3, 14))'; then
            echo "$("$python" --version) at $(command -v "$python"): expected CPython 3.8 to 3.13;" \
                "set PYTHON to one" >&2
            return 1
        fi
        echo "making a virtual environment in $directory ..."
        # Where this very environment is activated, its interpreter goes with it.
        python=$("$python" -c 'import sys; print(sys._base_executable)')
        rm -rf "$directory"
        if ! "$python" -m venv "$directory"; then
            echo "the venv module of $python does not work; on Debian: apt-get install python3-venv" >&2
            return 1
        fi
        "$directory/bin/pip" install --quiet --disable-pip-version-check --upgrade pip
        "$directory/bin/pip" install --quiet --disable-pip-version-check --prefer-binary -e ".[$extra]"
        # On CPython 3.13 the extra cannot bring it (see scripts/install.sh); elsewhere it is there.
        "$directory/bin/pip" install --quiet --disable-pip-version-check --no-deps mxnet==1.9.1
        echo "$stamp" > "$directory/.stamp"
    elif ! is_editable "$directory"; then
        echo "$directory has a copy of this checkout, as \`pip install .\` makes one: installing the checkout itself ..."
        "$directory/bin/pip" install --quiet --disable-pip-version-check --no-deps -e .
    fi
    PATH="$PWD/$directory/bin:$PATH"
}

# is_editable DIRECTORY: whether that environment runs the code of this checkout.
is_editable() {
    local found
    found=$("$1/bin/python" -c 'import importlib.util as u; print(u.find_spec("sagemaker_mxnet_toolkit").origin)' 2>/dev/null)
    [ "$found" -ef src/sagemaker_mxnet_toolkit/__init__.py ]
}

# make_base DIRECTORY [REQUIREMENT]...: makes an environment with this checkout, MXNet and the newest NumPy
# once, to be copied (cp -a) for each thing that is tried in one of its own. Its log is DIRECTORY.log.
make_base() {
    local directory=$1
    shift
    [ ! -e "$directory/ready" ] || return 0
    rm -rf "$directory"
    "${PYTHON:-python3}" -m venv "$directory"
    if ! { scripts/install.sh --python "$directory/bin/python" &&
        { [ $# -eq 0 ] || "$directory/bin/python" -m pip install "$@"; }; } >"$directory.log" 2>&1; then
        tail -n 20 "$directory.log" >&2
        echo "MXNet cannot be installed into $directory; pip's last lines are above" >&2
        return 1
    fi
    touch "$directory/ready"
}
