# Sourced by run scripts: sets `python` to an interpreter that has what a requirements file pins.
#
#   source python_env.sh; use_python requirements.txt
#
# QDROP_PYTHON, if set, is used as it is. Otherwise the requirements are installed into the active virtual
# environment or, if none is active, into .venv beside this file, once for each version of the file.

root=$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)

use_python() {
    local requirements=$1 stamp
    if [ -n "${QDROP_PYTHON:-}" ]; then
        python=$QDROP_PYTHON
        command -v "$python" > /dev/null || {
            echo "QDROP_PYTHON=$python: there is no such program." >&2
            return 1
        }
        "$python" -c 'import sys, importlib.util as u; sys.exit(not (u.find_spec("torch") and u.find_spec("qdrop")))' > /dev/null 2>&1 || {
            echo "$python cannot import torch or qdrop; install both first: $python -m pip install -e $root" >&2
            return 1
        }
        return
    fi
    local env=${VIRTUAL_ENV:-$root/.venv}
    if [ ! -x "$env/bin/python" ]; then
        echo "Making a virtual environment in $env (QDROP_PYTHON=... uses an interpreter of yours)." >&2
        make_env "$env" || return 1
    fi
    python=$env/bin/python
    stamp=$env/.qdrop-$(cat "$root/requirements.txt" "$requirements" | cksum | cut -d' ' -f1)
    if [ ! -e "$stamp" ]; then
        echo "Installing the pinned requirements into $env; torch is large, this takes a few minutes." >&2
        { "$python" -m pip install --quiet --disable-pip-version-check --no-compile -r "$requirements" &&
            "$python" -m pip install --quiet --disable-pip-version-check --no-deps -e "$root"; } || {
            echo "The requirements could not be installed, see above; QDROP_PYTHON=... uses an interpreter that has them." >&2
            return 1
        }
        touch "$stamp"
    fi
}

make_env() { # a virtual environment in the folder $1, whole or not at all
    local env=$1 before=
    command -v python3 > /dev/null || {
        echo "There is no python3 here: install Python 3.11 or newer, or name an interpreter with QDROP_PYTHON=..." >&2
        return 1
    }
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "Python 3.11 or newer is needed; python3 here is $(python3 --version)." >&2
        return 1
    }
    [ ! -e "$env" ] || before=there
    python3 -m venv "$env" || {
        [ -n "$before" ] || rm -rf "$env" # half of one would be taken for whole the next time
        return 1
    }
}
