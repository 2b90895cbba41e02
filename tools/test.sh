#!/bin/sh
# Runs the tests by tier: `all`, `fast`, or a folder of tests/.
set -eu
cd "$(dirname "$0")/.."
tier=${1:-all}
# Examples that are made from a schema come in the order of its sets: without this, other ones in each run.
export PYTHONHASHSEED=0
pytest=".venv/bin/python -m pytest -v --durations=25"
case "$tier" in
fast) exec $pytest -n 2 -m "not slow" tests/unit ;;
# Three workers on two cores: tests of real processes wait a lot. tests/conftest.py decides which worker runs what.
# Nodes run alone: two engines in containers beside four others leave no memory, and half the speed is no time saved.
all)
    failed=0
    FAILURES=$(mktemp)
    export FAILURES FULL=1
    $pytest -n 3 --dist loadfile --no-loadscope-reorder --ignore=tests/nodes tests || failed=$?
    $pytest tests/nodes || failed=$?
    cat "$FAILURES" # of both runs, where somebody looks: at the end
    rm "$FAILURES"
    exit "$failed"
    ;;
nodes) LONG=1 FULL=1 exec $pytest tests/nodes ;; # with what takes minutes each
*) FULL=1 exec $pytest "tests/$tier" ;;
esac
