#!/bin/sh
# Makes .venv with the Python $1 and the pinned, hashed requirements in $2.
set -eu
python=$1 requirements=$2
cd "$(dirname "$0")/.."

if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
    echo "setup: $python is not Python 3.11, 3.12 or 3.13; install one, or run: make setup PYTHON=/path/to/python3.12" >&2
    exit 2
fi
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c pass 2>/dev/null; then
    echo "setup: making .venv with $("$python" --version)" >&2
    rm -rf .venv
    if ! "$python" -m venv .venv; then
        echo "setup: $python has no working venv module; on Debian: apt-get install python3-venv" >&2
        exit 2
    fi
fi
if ! .venv/bin/uv --version >/dev/null 2>&1; then
    .venv/bin/python -m ensurepip --upgrade >/dev/null 2>&1 || true
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
fi
case "$requirements" in */operator.txt) size="about 300 MB" ;; */local-gpu.txt) size="about 12 GB with CUDA" ;; *) size="about 6 GB with torch" ;; esac
echo "setup: installing $requirements ($size; linked from uv's cache the next time)" >&2
# With bootstrap.txt, so that uv does not uninstall itself if the requirements do not name it.
# Compiled once here: where Python must not write bytecode (PYTHONDONTWRITEBYTECODE, usual in containers), each process
# would compile what it imports, 20 s for vLLM and 5 s for pulumi_aws.
.venv/bin/uv pip sync --python .venv/bin/python --require-hashes --compile-bytecode "$requirements" requirements/bootstrap.txt
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
