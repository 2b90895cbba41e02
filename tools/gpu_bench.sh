#!/bin/sh
# Runs the benchmark on this machine's NVIDIA GPU: gpu_bench.sh [OPTION...], see `python -m tools.bench.gpu --help`.
# It needs vLLM's CUDA build. Where $PYTHON has it (a machine without a network got it on PYTHONPATH), nothing is
# installed; else requirements/local-gpu.txt goes into .venv-gpu, beside the .venv with vLLM's CPU
# build: not cluster.txt, because the default model is converted from GGUF.
set -eu
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."

card=
for device in /dev/nvidia[0-9]* /dev/dxg; do # the second is WSL's
    [ -e "$device" ] && card=$device
done
if [ -z "$card" ]; then
    echo "gpu-bench: no NVIDIA card here: there is no /dev/nvidia0; run this on a machine with one and its driver" >&2
    exit 2
fi
has_vllm() { "$1" -c 'import importlib.metadata as m; m.version("vllm"); m.version("ray")' 2>/dev/null; }
if ! has_vllm "$python"; then
    if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
        echo "gpu-bench: $python is not Python 3.11, 3.12 or 3.13; run: make gpu-bench PYTHON=/path/to/python3.12" >&2
        exit 2
    fi
    if ! has_vllm .venv-gpu/bin/python; then
        echo "gpu-bench: installing requirements/local-gpu.txt into .venv-gpu (about 12 GB with torch and CUDA)" >&2
        "$python" -m venv --clear .venv-gpu
        .venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
        .venv-gpu/bin/uv pip sync --python .venv-gpu/bin/python --require-hashes requirements/local-gpu.txt requirements/bootstrap.txt
    fi
    python=.venv-gpu/bin/python
fi
exec "$python" -m tools.bench.gpu "$@"
