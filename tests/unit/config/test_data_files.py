"""The checked-in facts are those of the installed packages. Otherwise `check` refuses what vLLM accepts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from modelfleet.serving.config.catalogs import serve_options
from modelfleet.serving.config.schema import AutoscalingConfig, DeploymentConfig, RayActorOptions
from modelfleet.serving.config.serve_options import GATEWAY_KEYS, SCALING_KEYS

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "module",
    [
        pytest.param("tools.schema.engine_arguments", marks=pytest.mark.slow),
        pytest.param("tools.schema.serve_options", marks=pytest.mark.slow),
        "tools.schema.json_schema",
        "tools.schema.reference",
        "tools.schema.cloud_rules",
    ],
)
def test_the_generated_files_match_the_installed_packages(module: str) -> None:
    """Each runs in its own process, so vLLM is not loaded into this one."""
    run = subprocess.run(
        [sys.executable, "-m", module, "--check"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr[-600:]


#: Keys that are not Ray Serve's, or mean something else there, and keys whose default is the policy's.
OWN = {"slo", *SCALING_KEYS, *GATEWAY_KEYS}
BY_POLICY = {"metrics_interval_s", "look_back_period_s", "upscale_delay_s", "downscale_delay_s"}


@pytest.mark.parametrize(
    ("ours", "ray"),
    [(AutoscalingConfig, "autoscaling"), (DeploymentConfig, "deployment"), (RayActorOptions, "ray_actor_options")],
    ids=["autoscaling", "deployment", "actor"],
)
def test_every_key_of_ours_is_an_option_of_ray_serve(ours: type, ray: str) -> None:
    assert ours.model_fields.keys() - OWN <= serve_options()[ray].keys()  # type: ignore[attr-defined]


def test_only_the_interval_among_our_keys_is_deprecated_in_ray() -> None:
    """metrics_interval_s comes from the seed document; Ray 2.60 still reads it."""
    ours = AutoscalingConfig.model_fields.keys() - OWN
    deprecated = {name for name in ours if serve_options()["autoscaling"][name]["deprecated"]}
    assert deprecated == {"metrics_interval_s"}


def test_our_defaults_are_ray_serves_unless_rayllm_had_its_own() -> None:
    """RayLLM's target was 1; Ray's is 2."""
    differing = {
        name: (field.default, serve_options()["autoscaling"][name]["default"])
        for name, field in AutoscalingConfig.model_fields.items()
        if name not in OWN | BY_POLICY and field.default != serve_options()["autoscaling"][name]["default"]
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
