"""The gateway's files, as the pods see them, through HAProxy's own checker."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.kubernetes.manifests.gateway import CONFIG_PATH, KEYS_PATH, RUN_PATH, gateway_config, gateway_deployment
from infra.local.haproxy import find_binary
from tests.cluster.fleet import five_models, planned


@pytest.fixture
def root() -> Iterator[Path]:
    """A short folder: HAProxy's sockets lie below it, and Linux allows 107 bytes for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


@pytest.mark.parametrize("config", ["haproxy.cfg", "bodies.cfg"])
def test_haproxy_takes_the_rendered_configuration(tmp_path: Path, root: Path, config: str) -> None:
    plan = planned(tmp_path / "project", five_models(), auth="none", gateway={"requestsPerMinute": 60})
    texts = gateway_config(plan)["data"]
    for path in (CONFIG_PATH, KEYS_PATH, RUN_PATH):
        (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        here = text
        for path in (KEYS_PATH, CONFIG_PATH, RUN_PATH):
            here = here.replace(f"{path}/", f"{root / path.lstrip('/')}/")
        (root / CONFIG_PATH.lstrip("/") / name).write_text(here)
    command = [find_binary(), "-c", "-f", str(root / CONFIG_PATH.lstrip("/") / config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_file_that_the_configuration_names_is_mounted(tmp_path: Path) -> None:
    plan = planned(tmp_path, five_models())
    texts = gateway_config(plan)["data"]
    pod = gateway_deployment(plan, "id")["spec"]["template"]["spec"]
    commands = [container["command"][-1] for container in pod["containers"]]
    assert {Path(command).name for command in commands} <= set(texts)
    mounts = {m["mountPath"] for container in pod["containers"] for m in container["volumeMounts"]}
    assert mounts == {CONFIG_PATH, KEYS_PATH, RUN_PATH}


def test_changed_keys_or_routes_change_the_pods(tmp_path: Path) -> None:
    plan, fewer = planned(tmp_path, five_models()), planned(tmp_path, five_models()[:2])
    seen = [
        gateway_deployment(p, keys)["spec"]["template"]["metadata"]["annotations"]
        for p, keys in ((plan, "a"), (plan, "b"), (fewer, "a"))
    ]
    assert len({tuple(sorted(one.items())) for one in seen}) == 3
