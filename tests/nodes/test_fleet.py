"""The whole way in real pods: one `pulumi up`, then an answer."""

from __future__ import annotations

import json

import pytest

from tests.nodes.fleet import SLUG, NodesFleet
from tests.nodes.pods import Pods

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("path", ["/v1", f"/{SLUG}/v1"])
def test_a_model_file_becomes_an_answer(fleet: NodesFleet, pods: Pods, path: str) -> None:
    ask = fleet.question("What is the capital of France?", path=path)
    assert "Paris" in json.loads(pods.says(ask))["choices"][0]["message"]["content"]
