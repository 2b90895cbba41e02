#!/bin/sh
# Says which pinned packages suit this machine's NVIDIA card, and why; ends with 2 and the fix where none do.
# The same limits as infra/planning/cards.py, which asks again before anything starts: here nothing is installed yet.
set -eu
least=580
architecture=$(uname -m)

if [ "$architecture" != x86_64 ]; then
    echo "setup: this machine is $architecture, and the pinned packages are for x86_64; serve on such a machine" >&2
    exit 2
fi
smi=$(command -v nvidia-smi || echo /usr/lib/wsl/lib/nvidia-smi)
if ! found=$("$smi" --query-gpu=name,driver_version --format=csv,noheader,nounits); then
    echo "setup: no usable NVIDIA card (${found:-there is no nvidia-smi}); install NVIDIA's driver $least or newer, run a container with --gpus all, or serve on CPUs: make up" >&2
    exit 2
fi
card=$(echo "$found" | head -n 1)
name=${card%, *} driver=${card##*, }
if [ "${driver%%.*}" -lt "$least" ]; then
    echo "setup: $name has driver $driver, and the pinned CUDA 13.0 needs $least or newer; update the driver" >&2
    exit 2
fi
echo "setup: $name, driver $driver, $architecture: requirements/local-gpu.txt, whose CUDA 13.0 needs driver $least" >&2
