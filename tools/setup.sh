#!/bin/sh
# Makes .venv with the pinned, hashed requirements of $2, by the Python that $1 names.
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
echo "setup: installing the pinned requirements (about 6 GB with torch; linked from uv's cache the next time)" >&2
.venv/bin/uv pip sync --python .venv/bin/python --require-hashes "$requirements"
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
# Every `pulumi` run imports pulumi_aws, whose source takes five seconds to compile; where Python may not write
# bytecode (PYTHONDONTWRITEBYTECODE, usual in containers) it would do so each time.
env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m tools.warm
