#!/bin/sh
# Runs the tests by tier: `all`, `fast`, or a folder of tests/. Two processes at most: vLLM and Ray need the rest.
set -eu
cd "$(dirname "$0")/.."
tier=${1:-all}
pytest=".venv/bin/python -m pytest -v --durations=25"
case "$tier" in
fast) exec $pytest -n 2 -m "not slow" tests/unit ;;
all) FUZZ_FILES=10000 exec $pytest -n 2 --dist loadgroup tests ;;
*) exec $pytest "tests/$tier" ;;
esac
