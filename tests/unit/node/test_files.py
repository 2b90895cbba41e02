from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

from tools.kubernetes.node import files
from tools.kubernetes.node.settings import NodeSettings

NODE = NodeSettings(
    number=2,
    server="https://172.30.0.1:16443",
    folder="/state/node-2",
    certificate="/state/apiserver.crt",
    token="kubelet-token",
    proxy_token="proxy-token",
    cgroup="/modelfleet-1-2",
    images=("/cache/images.tar",),
    programs=(("kubelet", "/cache/kubelet"),),
    mounts=(("/cache/python", "/opt/python"),),
    cpus=16,
)


def test_what_a_node_is_told_it_reads_and_nobody_else_may(tmp_path: Path) -> None:
    NODE.write(tmp_path / "settings.json")
    assert NodeSettings.read(tmp_path / "settings.json") == NODE
    assert (tmp_path / "settings.json").stat().st_mode & 0o077 == 0


def test_nodes_have_addresses_and_pods_of_their_own() -> None:
    nodes = [replace(NODE, number=number) for number in (1, 2, 3)]
    for one in ("name", "address", "pods"):
        assert len({getattr(node, one) for node in nodes}) == 3


def test_a_container_starts_from_the_default_and_sees_the_nodes_mounts_read_only() -> None:
    default = {"process": {"cwd": "/", "rlimits": [{"type": "RLIMIT_NOFILE"}]}, "mounts": [{"destination": "/proc"}]}
    spec = json.loads(files.base_runtime_spec(NODE, default))
    assert spec["process"] == {"cwd": "/"}
    assert [mount["destination"] for mount in spec["mounts"]] == ["/proc", "/opt/python"]
    assert "ro" in spec["mounts"][1]["options"]


def test_the_container_runtime_and_the_kubelet_meet_at_one_socket() -> None:
    runtime = tomllib.loads(files.containerd(NODE))["plugins"]["io.containerd.grpc.v1.cri"]
    assert runtime["containerd"]["runtimes"]["runc"]["base_runtime_spec"] == "/state/node-2/base.json"
    kubelet = json.loads(files.kubelet(NODE))
    assert kubelet["containerRuntimeEndpoint"] == f"unix://{files.SOCKET}"
    assert kubelet["cgroupRoot"] == "/modelfleet-1-2"
