"""The names by which clients and the gateway know models."""

from __future__ import annotations

from pathlib import Path

from modelfleet.infra.planning.applications import name_findings
from modelfleet.infra.planning.gateway_paths import RESERVED
from modelfleet.serving.config import load_models

FILE = """
engine_config: {{model_id: {name}}}
scaling_config: {{num_workers: 1, num_gpus_per_worker: 0}}
"""


def findings(tmp_path: Path, name: str) -> list[str]:
    file = tmp_path / "one.yaml"
    file.write_text(FILE.format(name=name))
    return [finding.message for finding in name_findings(load_models([file]).valid())]


def test_a_model_must_not_take_a_path_of_the_gateway(tmp_path: Path) -> None:
    """It would shadow `/health`, or never be reached."""
    assert {"v1", "v2", "health", "version", "invocations", "generative_scoring", "rerank", "score"} <= RESERVED
    for name in sorted(RESERVED):
        assert len(findings(tmp_path, name)) == 1, name
    assert findings(tmp_path, "organization/health") == []
