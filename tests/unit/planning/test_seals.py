"""Which models have a sealed compile cache, by what key, and where users see it and its cost."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from modelfleet.cli.plan_html import plan_page
from modelfleet.cli.plan_json import plan_json
from modelfleet.cli.plan_table import plan_table
from modelfleet.infra.planning.plan import ModelPlan, SealPlan
from modelfleet.infra.planning.seals import NODE_IDLE_S, NOT_COMPILED, PLACES, WRITE_S
from modelfleet.serving.config.errors import InputErrors
from modelfleet.serving.seal import cache_environment
from tests.unit.planning.builders import model, planned, pool, stack
from tests.unit.planning.test_start_up import QWEN, facts_of

BUCKET = "modelfleet-test-111122223333"


def one(made: Any = None, pools: dict[str, Any] | None = None, **keys: Any) -> ModelPlan:
    """The plan of one model, in a pool with sealed caches."""
    facts = keys.pop("facts", {})
    sealing = pool(sealedCaches=True, **(pools or {}))
    (found,) = planned([made or model()], stack(sealing, **keys), facts=facts).models
    return found


def seal_of(made: Any = None, **keys: Any) -> SealPlan:
    seal = one(made, **keys).seal
    assert seal is not None
    return seal


def test_without_the_key_nothing_changes() -> None:
    """No model restarts, and no role, Job or price comes, because a version of ours knows seals."""
    (found,) = planned([model()], stack(pool())).models
    assert found.seal is None and "seal" not in found.application.args["weights"]


def test_a_replica_is_told_the_prefix_whose_end_is_the_key() -> None:
    found = one()
    assert found.seal is not None and found.seal.prefix == f"seals/org--model/{found.seal.key}"
    assert len(found.seal.key) == 16
    assert found.application.args["weights"]["seal"] == f"s3://{BUCKET}/{found.seal.prefix}"


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        (model(), {"kubernetes": {"image": "registry.example/serving:2"}}),
        (model(engine_kwargs={"max_num_seqs": 7}), {}),
        (model(max_total_tokens=512), {}),
        (model(workers=2), {"pools": {"instanceTypes": ["g6.12xlarge"]}}),
        (model(revision="a" * 40), {}),
        (model(hf_model_id="other/weights"), {}),
        (model(runtime_env={"env_vars": {"VLLM_USE_FLASHINFER_SAMPLER": "0"}}), {}),
        (model("org/other"), {}),
    ],
    ids=["image", "argument", "length", "workers", "revision", "weights", "environment", "model"],
)
def test_what_decides_the_compiled_code_changes_the_key(changed: Any, keys: dict[str, Any]) -> None:
    assert seal_of(changed, **keys).key != seal_of().key


@pytest.mark.parametrize(
    "changed",
    [
        model(generation={"generate_kwargs": {"temperature": 0.2, "stop": ["x"]}}),
        model(engine_kwargs={"tool_call_parser": "hermes", "enable_auto_tool_choice": True}),
        model(engine_kwargs={"allowed_media_domains": ["example.org"]}),
        model(model_description="Another sentence."),
        model(replicas=(0, 3)),
    ],
    ids=["sampling", "tools", "media", "description", "replicas"],
)
def test_an_edit_that_compiles_nothing_takes_no_gpu_again(changed: Any) -> None:
    assert seal_of(changed).key == seal_of().key


def test_the_accelerator_is_in_the_key() -> None:
    other = planned([model(accelerator="A10G")], stack(pool("a10g", "A10G", sealedCaches=True))).models[0].seal
    assert other is not None and other.key != seal_of().key


def test_another_release_of_the_serving_code_keeps_the_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zip with other bytes, but the same arguments: a Job for each model and release would cost a GPU each time."""
    from modelfleet.infra.planning.plan import CodeArtifact

    before = seal_of().key
    monkeypatch.setattr("tests.unit.planning.builders.CODE", CodeArtifact("1" * 64))
    assert seal_of().key == before
    monkeypatch.setitem(__import__("modelfleet.serving.engine_args", fromlist=["x"]).DEFAULT_ENVIRONMENT, "VLLM_X", "1")
    assert seal_of().key != before, "code that changes vLLM's environment changes what is compiled"


@pytest.mark.parametrize(
    ("made", "keys", "because"),
    [
        (model(engine_kwargs={"enforce_eager": True}), {}, "eagerly"),
        (
            model(engine_kwargs={"trust_remote_code": True}, revision="a" * 40),
            {"trust": {"foreignCode": ["org/model"]}},
            "code of its own",
        ),
        (model(engine_kwargs={"distributed_executor_backend": "ray"}), {}, "Ray's"),
        (model(runtime_env={"env_vars": {"TRITON_CACHE_DIR": "/x"}}), {}, "(TRITON_CACHE_DIR)"),
        (model(hf_model_id="/mnt/weights"), {}, "in no bucket"),
    ],
    ids=["eager", "foreign code", "Ray's executor", "own places", "own folder"],
)
def test_a_model_without_a_job_says_why_and_starts_as_ever(made: Any, keys: dict[str, Any], because: str) -> None:
    found = one(made, **keys)
    assert found.seal is not None and found.seal.prefix is None
    assert because in found.seal.because and found.seal.key == ""
    assert "seal" not in found.application.args["weights"]


def test_another_model_that_takes_the_last_node_costs_the_job_and_changes_no_argument() -> None:
    """Arguments restart a model, and the seal that is there already is still the model's."""
    two_nodes, image = pool(sealedCaches=True, maxNodes=2), {"kubernetes": {"image": "registry.example/serving:1"}}
    before = planned([model("org/a")], stack(two_nodes, **image)).models[0]
    after = planned([model("org/a"), model("org/b")], stack(two_nodes, **image)).models[0]
    assert before.seal and before.seal.has_job and after.seal and not after.seal.has_job
    assert "all 2 nodes; raise maxNodes" in after.seal.because
    assert after.application.args == before.application.args
    assert after.start == planned([model("org/a")], stack(pool(), **image)).models[0].start, "nobody may have made it"


def test_the_places_that_a_file_may_choose_are_those_that_a_seal_needs() -> None:
    from pathlib import Path

    assert set(PLACES) == cache_environment(Path("/x")).keys()
    assert not {"tensor_parallel_size", "max_model_len", "dtype", "quantization"} & set(NOT_COMPILED)


@pytest.mark.parametrize(
    ("keys", "says"),
    [({"target": "local"}, "this machine keeps its own"), ({"mirror": {"create": False}}, "fills no bucket")],
)
def test_a_key_that_can_have_no_effect_is_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(InputErrors) as caught:
        one(**keys)
    (found,) = [finding for finding in caught.value.findings if "sealedCaches" in finding.path]
    assert says in found.message and found.line


def test_the_start_is_shorter_and_the_job_costs_its_node_until_the_autoscaler_takes_it() -> None:
    facts = {QWEN: facts_of(QWEN)}
    with_seal = one(model(QWEN), facts=facts)
    (without,) = planned([model(QWEN)], stack(pool()), facts=facts).models
    assert with_seal.start and without.start and with_seal.seal
    cold, sealed = ({part.name: part.seconds for part in found.start.parts} for found in (without, with_seal))
    assert (sealed["compile"], sealed["seal"]) == (1, 2) and cold["compile"] == pytest.approx(60.4)
    assert without.start.seconds - with_seal.start.seconds == pytest.approx(cold["compile"] - 3)
    assert with_seal.seal.seconds == round(without.start.seconds + WRITE_S), "the Job itself starts without a seal"
    price = planned([model(QWEN)], stack(pool()), facts=facts).pools[0].usd_per_node_hour
    assert price and with_seal.seal.usd == pytest.approx((without.start.seconds + WRITE_S + NODE_IDLE_S) * price / 3600)


def test_table_json_and_page_show_each_seal_its_cost_or_why_there_is_none() -> None:
    models = [model(QWEN), model("org/eager", engine_kwargs={"enforce_eager": True})]
    ranked = model("org/ranked", engine_kwargs={"data_parallel_size": 2}, workers=2)
    plan = planned([*models, ranked], stack(pool(sealedCaches=True)), facts={QWEN: facts_of(QWEN)})
    seal = next(found.seal for found in plan.models if found.model_id == QWEN)
    assert seal and seal.usd
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plan_table(plan))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    row = next(line for line in lines if line.startswith(QWEN) and seal.key in line)
    assert f"about {seal.seconds / 60:.0f} min" in row and f"{seal.usd:.2f} USD" in row
    assert "org/eager none: it runs eagerly, so nothing is compiled" in lines
    assert "org/ranked none: its data parallel ranks compile side by side, which was not tried" in lines
    shown = {found["model_id"]: found["seal"] for found in plan_json(plan)["models"]}
    assert shown[QWEN]["prefix"] == seal.prefix and shown["org/eager"]["prefix"] is None
    page = " ".join(plan_page(plan).split())
    assert seal.key in page and "none: it runs eagerly" in page
    without = planned(models, stack(pool()))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plan_table(without))
    assert "ealed" not in console.export_text() and "ealed" not in plan_page(without)
