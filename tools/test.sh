#!/bin/sh
# Runs the tests by tier: `all`, `fast`, or a folder of tests/. Two processes at most: vLLM and Ray need the rest.
set -eu
cd "$(dirname "$0")/.."
tier=${1:-all}
pytest=".venv/bin/python -m pytest -v --durations=25"
case "$tier" in
fast) exec $pytest -n 2 -m "not slow" tests/unit ;;
all)
    # A test of real processes may meet a busy machine: it gets two more tries, and the report says R for each.
    # A file's tests stay on one worker, in their order: they share a Ray, a control plane or a stack. Folder by folder,
    # for the files of unit/ are many and short, and fill both workers to the end.
    FUZZ_FILES=10000 exec $pytest -n 2 --dist loadfile --no-loadscope-reorder --reruns 2 tests
    ;;
*) exec $pytest "tests/$tier" ;;
esac
