"""The checked-in facts are those of the installed packages. Damage otherwise: `check` refuses what vLLM takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving.config.catalogs import serve_options
from serving.config.schema import AutoscalingConfig, DeploymentConfig, RayActorOptions

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "module",
    [
        pytest.param("tools.schema.engine_arguments", marks=pytest.mark.slow),
        pytest.param("tools.schema.serve_options", marks=pytest.mark.slow),
        "tools.schema.json_schema",
        "tools.schema.reference",
    ],
)
def test_the_generated_files_are_what_the_installed_packages_make(module: str) -> None:
    """One process each, so that vLLM is not loaded into this one."""
    run = subprocess.run(
        [sys.executable, "-m", module, "--check"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr[-600:]


@pytest.mark.parametrize(
    ("ours", "ray"),
    [(AutoscalingConfig, "autoscaling"), (DeploymentConfig, "deployment"), (RayActorOptions, "ray_actor_options")],
    ids=["autoscaling", "deployment", "actor"],
)
def test_every_key_of_ours_is_an_option_of_ray_serve(ours: type, ray: str) -> None:
    assert ours.model_fields.keys() <= serve_options()[ray].keys()  # type: ignore[attr-defined]


def test_no_key_of_ours_is_deprecated_in_ray_but_the_interval() -> None:
    """metrics_interval_s is the seed document's; Ray 2.60 still reads it."""
    deprecated = {name for name in AutoscalingConfig.model_fields if serve_options()["autoscaling"][name]["deprecated"]}
    assert deprecated == {"metrics_interval_s"}


def test_our_defaults_are_ray_serves_where_rayllm_had_no_other() -> None:
    """RayLLM's target was 1; Ray's is 2."""
    differing = {
        name: (field.default, serve_options()["autoscaling"][name]["default"])
        for name, field in AutoscalingConfig.model_fields.items()
        if field.default != serve_options()["autoscaling"][name]["default"]
    }
    assert differing == {
        "target_ongoing_requests": (1.0, 2),
        "upscaling_factor": (1.0, None),
        "downscaling_factor": (1.0, None),
    }, "a factor of None is smoothing_factor's 1.0"


def test_a_drift_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools.schema import common

    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["x", "--check"])
    (tmp_path / "a.json").write_text("{}\n")
    assert common.write_or_compare(tmp_path / "a.json", '{"a": 1}\n') == 1
    assert "run `make schema`" in capsys.readouterr().err
