"""Many files give one list of findings, and each model_id appears only once."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelfleet.serving.config.errors import InputErrors
from modelfleet.serving.config.load import load_models

TEXT = "engine_config: {model_id: a/b}\nscaling_config: {num_workers: 1, num_gpus_per_worker: 0}\n"


def write(folder: Path, **files: str) -> list[Path]:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return sorted(folder.glob("*.yaml"))


def test_two_files_with_one_id_are_an_error_in_the_later_one(tmp_path: Path) -> None:
    """Otherwise one Serve application would silently replace the other."""
    loading = load_models(write(tmp_path, a=TEXT, b="# second\n" + TEXT), tmp_path)
    assert [(f.file, f.line, f.path) for f in loading.findings] == [("b.yaml", 2, "engine_config.model_id")]
    assert "a.yaml has too" in loading.findings[0].message
    with pytest.raises(InputErrors):
        loading.valid()


def test_every_fault_of_every_file_comes_at_once(tmp_path: Path) -> None:
    loading = load_models(write(tmp_path, a="x: [", b="3", c=TEXT.replace("a/b", "a b"), d=TEXT), tmp_path)
    assert [f.file for f in loading.findings] == ["a.yaml", "b.yaml", "c.yaml"]
    assert [model.config.model_id for model in loading.models] == ["a/b"]


def test_a_disabled_model_is_left_out_but_checked(tmp_path: Path) -> None:
    loading = load_models(write(tmp_path, a="enabled: false\n" + TEXT, b="enabled: false\nx: 1\n" + TEXT), tmp_path)
    assert loading.models == ()
    assert [f.file for f in loading.findings] == ["b.yaml"]
