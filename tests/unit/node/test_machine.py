from __future__ import annotations

from pathlib import Path

import pytest

from modelfleet.serving.config.errors import SetupError
from tools.kubernetes.node import machine
from tools.kubernetes.node.machine import CONTROLLERS, lacking


def cgroups_v1(folder: Path, *absent: str) -> Path:
    for name in set(CONTROLLERS) - set(absent):
        (folder / name).mkdir(parents=True)
    return folder


@pytest.fixture
def filesystems(tmp_path: Path) -> Path:
    path = tmp_path / "filesystems"
    path.write_text("nodev\ttmpfs\nnodev\toverlay\n\text4\n")
    return path


def test_all_that_is_missing_is_said_at_once(
    tmp_path: Path, filesystems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystems.write_text("\text4\n")
    monkeypatch.setattr(
        machine.shutil, "which", lambda command: None if command in {"runc", "nft"} else f"/bin/{command}"
    )
    monkeypatch.setattr(machine, "NETWORK_PLUGINS", tmp_path)
    cgroups = cgroups_v1(tmp_path / "cgroup", "cpuset", "pids")
    assert lacking(user=1000, cgroups=cgroups, filesystems=filesystems) == [
        "root (namespaces, mounts and cgroups need it)",
        "packages (apt-get install --no-install-recommends containernetworking-plugins nftables runc)",
        f"a writable cgroup v1 hierarchy of cpuset, pids under {cgroups}",
        "overlayfs in the kernel",
    ]


def test_cgroup_v2_alone_is_refused_in_one_line(tmp_path: Path, filesystems: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    said = [line for line in lacking(user=0, cgroups=tmp_path, filesystems=filesystems) if "cgroup" in line]
    assert said == ["cgroup v1 (it has v2 alone, on which nodes were not tried)"]


def test_a_machine_without_root_gets_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    with pytest.raises(SetupError, match=r"real nodes cannot run here; this machine lacks: root \(") as raised:
        machine.require()
    assert raised.value.exit_code == 2
