"""What a replica's start takes, part by part, and where users see it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from modelfleet.cli.plan_html import plan_page
from modelfleet.cli.plan_json import plan_json
from modelfleet.cli.plan_table import plan_table
from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning.facts import ModelFacts, catalog_facts
from modelfleet.infra.planning.start_up import GIB, StartUp, start_up
from modelfleet.infra.stack.target import TARGETS
from tests.unit.planning.builders import model, planned, pool, stack

QWEN = "Qwen/Qwen3-8B"


def facts_of(hf_id: str) -> ModelFacts:
    config = model(hf_id).config
    found = catalog_facts([config], default_catalog())[hf_id]
    assert found is not None, f"the catalog no longer knows {hf_id}"
    return found


def start(
    hf_id: str = QWEN,
    gib: float = 16,
    target: Any = "eks",
    accelerator: str = "H100",
    memory_gib: int = 200,
    **keys: Any,
) -> StartUp:
    config = model(hf_id, accelerator, **keys).config
    found = start_up(config, facts_of(hf_id), TARGETS[target], round(gib * GIB), memory_gib * 1024)
    assert found is not None
    return found


def seconds(found: StartUp) -> dict[str, float]:
    return {part.name: round(part.seconds, 1) for part in found.parts}


@pytest.mark.parametrize(
    ("hf_id", "measured_s"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 64.9),
        ("Qwen/Qwen3-8B", 91.5),
        ("openai/gpt-oss-20b", 129.4),
        ("Qwen/Qwen3-32B", 104.1),
    ],
)
def test_the_engines_start_is_near_what_an_h100_took(hf_id: str, measured_s: float) -> None:
    """vLLM 0.32.0's "init engine … took", with random weights and without any cache, 2026-11-27."""
    found = seconds(start(hf_id))
    assert found["compile"] + found["graphs"] == pytest.approx(measured_s, rel=0.25)


def test_of_weights_and_import_only_the_longer_counts() -> None:
    small, large = start(gib=1), start(gib=100)
    assert seconds(large)["weights"] == 171.0 and seconds(large)["import"] == 8.4
    assert large.seconds == pytest.approx(sum(seconds(large).values()) - 8.4, abs=0.2)
    assert small.seconds == pytest.approx(sum(seconds(small).values()) - seconds(small)["weights"], abs=0.2)


def test_another_replica_on_the_node_waits_for_no_node_image_or_weights() -> None:
    found = start(gib=100)
    parts = seconds(found)
    waited = parts["node"] + parts["image"] + parts["weights"]
    assert found.again_seconds == pytest.approx(sum(parts.values()) - waited, abs=0.2)


def test_each_target_has_its_own_way_to_a_node_with_an_image() -> None:
    assert seconds(start())["image"] == 66.8, "SOCI pulls in parallel on EKS"
    other = seconds(start(target="kubernetes"))
    assert "node" not in other and other["image"] == 125.3, "an existing cluster pulls with containerd"
    assert not {"node", "image"} & seconds(start(target="local")).keys()


def test_an_eager_engine_neither_compiles_nor_captures_graphs() -> None:
    eager = seconds(start(engine_kwargs={"enforce_eager": True}))
    assert not {"compile", "graphs"} & eager.keys()
    assert seconds(start())["compile"] == 60.4
    assert not {"compile", "graphs"} & seconds(start(accelerator="CPU")).keys(), "without GPUs vLLM runs eagerly"


def test_streamed_weights_are_downloaded_while_they_load() -> None:
    found = seconds(start(engine_kwargs={"load_format": "runai_streamer"}))
    assert (found["weights"], found["load"]) == (0.0, 27.4)


def test_weights_larger_than_the_nodes_memory_are_read_from_its_disk() -> None:
    """A large model's next replica was promised in seconds, from a page cache that cannot hold it."""
    fits, large = start(gib=100, memory_gib=100), start(gib=100, memory_gib=99)
    assert (seconds(fits)["load"], seconds(large)["load"]) == (22.0, 173.0)
    assert large.again_seconds - fits.again_seconds == pytest.approx(151)


def test_several_workers_are_processes_that_import_vllm_once_more() -> None:
    assert seconds(start(workers=2))["engine"] == 2 * seconds(start())["engine"]


def test_an_unknown_model_has_no_seconds() -> None:
    config = model("org/unknown").config
    assert start_up(config, None, TARGETS["eks"], None, 1) is None
    assert start_up(config, facts_of(QWEN), TARGETS["eks"], None, 1) is None


def test_table_json_and_page_show_every_part() -> None:
    plan = planned([model(QWEN), model("org/unknown")], stack(pool()), facts={QWEN: facts_of(QWEN)})
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plan_table(plan))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    head = next(line for line in lines if line.startswith("model node image"))
    assert head == "model node image ray weights import engine load compile graphs token together again"
    known, unknown = plan.models
    assert known.start and unknown.start is None
    row = next(line for line in lines if line.startswith(QWEN) and line.endswith(f" {known.start.again_seconds:.0f}"))
    assert row.split()[1:3] == ["120", "67"] and row.split()[-2] == f"{known.start.seconds:.0f}"
    shown = plan_json(plan)["models"]
    assert shown[0]["start"]["parts"][0] == {"name": "node", "seconds": 120.0, "beside": False}
    assert shown[0]["start"]["seconds"] == known.start.seconds and shown[1]["start"] is None
    page = " ".join(plan_page(plan).split())
    assert f"about {known.start.seconds:.0f} s: node 120, image 67, ray 10, weights" in page
    assert page.count("From nothing to the first token") == 1
