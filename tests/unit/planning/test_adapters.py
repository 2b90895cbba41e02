"""LoRA adapters in the plan: the room that is reserved, and what an edit of their list changes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.facts import ModelFacts, catalog_facts
from modelfleet.infra.planning.memory.engine import EngineArguments
from modelfleet.infra.planning.memory.slots import slots_bytes
from modelfleet.infra.reading.adapters import with_listed_adapters
from modelfleet.infra.reading.models import read_facts
from modelfleet.infra.reading.workspace import Workspace, plan_workspace
from modelfleet.serving.config.document import Document
from modelfleet.serving.config.errors import InputErrors, errors_in
from modelfleet.serving.config.load import load_models
from tests.unit.planning.builders import CODE, model, planned, pool, stack

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
CATALOG = default_catalog()


def adapters(*sources: str) -> list[dict[str, str]]:
    return [{"name": f"team/a{number}", "source": source} for number, source in enumerate(sources)]


def facts_of(ranks: dict[str, int] | None = None) -> dict[str, ModelFacts | None]:
    found = catalog_facts([model(LLAMA).config], CATALOG)[LLAMA]
    assert found is not None
    # Without what was measured of it, which counts for starts without adapters alone.
    return {LLAMA: dataclasses.replace(found, adapter_ranks=tuple((ranks or {}).items()), measured=())}


def plan_of(*sources: str, ranks: dict[str, int] | None = None, **engine: Any) -> Plan:
    one = model(LLAMA, "A100-80G", max_total_tokens=8192, lora=adapters(*sources), **engine)
    return planned([one], stack(pool("a100", "A100-80G")), facts=facts_of(ranks))


def arguments(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = plan.models[0].application.args["model"]["engine_config"]["engine_kwargs"]
    return found


def test_an_adapter_more_changes_nothing_that_restarts_the_model() -> None:
    """Serve restarts a model whose `args` change; what `user_config` has, running replicas take over."""
    ranks = {"org/a": 16, "org/b": 16}
    one, two = plan_of("org/a", ranks=ranks), plan_of("org/a", "org/b", ranks=ranks)
    first, second = (plan.models[0].application for plan in (one, two))
    assert first.args == second.args and "lora" not in json.dumps(first.args["model"]).replace("_lora", "").replace(
        "max_loras", ""
    )
    (deployment,) = first.as_config()["deployments"]
    mirror = "s3://modelfleet-test-111122223333/models/_adapter/org--a"
    assert deployment["user_config"] == {"lora": [{"name": "team/a0", "source": "org/a", "mirror": mirror}]}
    assert second.user_config is not None and len(second.user_config["lora"]) == 2
    assert two.gateway.routes[0].model_ids == (LLAMA, "team/a0", "team/a1")


@pytest.mark.parametrize(("count", "slots"), [(1, 4), (4, 4), (5, 8), (20, 8)])
def test_slots_come_in_two_steps(count: int, slots: int) -> None:
    names = [f"org/a{number}" for number in range(count)]
    found = arguments(plan_of(*names, ranks=dict.fromkeys(names, 12)))
    assert (found["enable_lora"], found["max_loras"], found["max_lora_rank"]) == (True, slots, 16)


def test_the_file_decides_where_it_says_something() -> None:
    found = arguments(plan_of("org/a", engine_kwargs={"max_loras": 1, "max_lora_rank": 128}))
    assert (found["max_loras"], found["max_lora_rank"]) == (1, 128)
    ready = plan_of(engine_kwargs={"enable_lora": True})
    assert arguments(ready)["max_loras"] == 4 and ready.models[0].application.user_config == {"lora": []}
    assert plan_of().models[0].application.user_config is None and "enable_lora" not in arguments(plan_of())


def test_a_rank_that_is_not_known_is_reserved_as_64_and_said() -> None:
    plan = plan_of("org/a", "org/b", ranks={"org/a": 8})
    assert arguments(plan)["max_lora_rank"] == 64
    (notice,) = [one.message for one in plan.notices if "rank" in one.message]
    assert notice.startswith("the rank of org/b is not known here, so 64 is reserved")
    assert not [one for one in plan_of("org/a", ranks={"org/a": 8}).notices if "rank" in one.message]


def test_the_slots_are_counted_as_vllm_makes_them() -> None:
    """Llama 3.1 8B, rank 16, one slot: q, k and v share an input, and so do gate and up."""
    found = facts_of()[LLAMA]
    assert found is not None
    layer = (3 * 4096 + 6144) + (4096 + 4096) + (2 * 4096 + 2 * 14336) + (14336 + 4096)
    outside = 2 * (128256 + 4096)
    assert slots_bytes(found.checkpoint, EngineArguments(1), 1, 16) == 16 * 2 * (32 * layer + outside)
    one, none = plan_of("org/a", ranks={"org/a": 16}).models[0].memory, plan_of().models[0].memory
    assert one is not None and none is not None
    taken = (one.weights_mib - none.weights_mib) * 2**20
    assert taken == pytest.approx(4 * slots_bytes(found.checkpoint, EngineArguments(1), 1, 16))


def test_drafts_tokenizers_and_adapters_are_copied_once_each_and_the_replica_is_told_where() -> None:
    drafts = {"method": "eagle3", "model": "org/draft", "num_speculative_tokens": 2, "revision": "v1"}
    engine: dict[str, Any] = {"tokenizer_id": "org/words", "engine_kwargs": {"speculative_config": drafts}}
    models = [
        model(name, "H100", max_total_tokens=4096, hf_model_id=LLAMA, lora=[{"name": f"{name}-a", "source": source}], **engine)
        for name, source in (("org/x", "s3://weights/legal"), ("org/y", "org/a"))
    ]  # fmt: skip
    plan = planned(models, stack(pool("h100", "H100")))
    copied = {one.prefix: (one.source, one.revision, one.kind) for m in plan.models for one in m.others}
    assert copied == {
        "models/_model/org--draft@v1": ("org/draft", "v1", "model"),
        "models/_tokenizer/org--words": ("org/words", None, "tokenizer"),
        "models/_adapter/s3--weights--legal": ("s3://weights/legal", None, "adapter"),
        "models/_adapter/org--a": ("org/a", None, "adapter"),
    }
    assert plan.copies.models == 2 + 4, "two models share the draft and the tokenizer"
    assert plan.bucket.copied_from == ("weights/legal",), "the Job may read it"
    at = "s3://modelfleet-test-111122223333/models"
    weights = plan.models[0].application.args["weights"]
    assert (weights["draft"], weights["tokenizer"]) == (f"{at}/_model/org--draft@v1", f"{at}/_tokenizer/org--words")


def test_the_rank_is_read_in_the_adapters_folder(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 24}')
    one = model(LLAMA, "H100", lora=[{"name": "team/a", "source": str(tmp_path)}])
    facts, _ = read_facts([one], tmp_path)
    found = facts[LLAMA]
    assert found is not None and found.adapter_ranks == ((str(tmp_path), 24),)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of moto's S3, in which the bucket `weights` has two adapters and what looks like one."""
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="weights")
        for key in ("l/tax/adapter_config.json", "l/legal/adapter_config.json", "l/legal/adapter_model.safetensors",
                    "l/notes.txt", "l/draft/README.md", "l/deep/er/adapter_config.json", "lx/no/adapter_config.json"):  # fmt: skip
            s3.put_object(Bucket="weights", Key=key, Body=b"{}")
        yield s3


def below(name: str = "team/*", source: str = "s3://weights/l/*", **more: Any) -> Any:
    lora = [{"name": "team/own", "source": "org/own"}, {"name": name, "source": source, **more}]
    return model(LLAMA, "H100", max_total_tokens=8192, lora=lora)


def plan_below(one: Any) -> Plan:
    listed, findings = with_listed_adapters([one])
    assert findings == []
    return planned(listed, stack(pool("h100", "H100")), facts=facts_of())


def test_a_folder_more_below_a_prefix_is_an_adapter_more_and_restarts_nothing(bucket: Any) -> None:
    first = plan_below(below())
    assert first.gateway.routes[0].model_ids == (LLAMA, "team/own", "team/legal", "team/tax")
    bucket.put_object(Bucket="weights", Key="l/new/adapter_config.json", Body=b"{}")
    bucket.delete_object(Bucket="weights", Key="l/tax/adapter_config.json")
    second = plan_below(below())
    assert second.gateway.routes[0].model_ids == (LLAMA, "team/own", "team/legal", "team/new")
    before, after = (plan.models[0].application for plan in (first, second))
    assert before.args == after.args and after.user_config is not None
    mirror = "s3://modelfleet-test-111122223333/models/_adapter/s3--weights--l--new"
    assert after.user_config["lora"][-1] == {"name": "team/new", "source": "s3://weights/l/new", "mirror": mirror}
    assert "weights/l/new" in second.bucket.copied_from, "its Job may read it"


def test_a_prefix_that_cannot_be_listed_is_an_error_and_an_empty_one_a_notice(bucket: Any) -> None:
    """Without the error a plan would take away the adapters that are served."""
    _, (gone,) = with_listed_adapters([below(source="s3://nowhere/l/*")])
    assert "NoSuchBucket" in gone.message and gone.path == "engine_config.lora[1].source"
    assert errors_in([gone]) == [gone]
    (listed,), (empty,) = with_listed_adapters([below(source="s3://weights/none/*")])
    assert errors_in([empty]) == [] and "no adapter of it is served" in empty.message
    assert [one.name for one in listed.config.engine_config.lora] == ["team/own"]
    bucket.put_object(Bucket="weights", Key="l/a b/adapter_config.json", Body=b"{}")
    _, (bad,) = with_listed_adapters([below()])
    assert "'a b'" in bad.message and "rename it" in bad.message


@pytest.mark.parametrize("folder", ["*", "..", "legal\n"])
def test_a_folder_whose_name_means_something_else_is_refused(bucket: Any, folder: str) -> None:
    """A bucket may have any name; `team/*` would reach the replica as all adapters below a prefix."""
    bucket.put_object(Bucket="weights", Key=f"l/{folder}/adapter_config.json", Body=b"{}")
    _, findings = with_listed_adapters([below()])
    (bad,) = errors_in(findings)
    assert repr(folder) in bad.message and "rename it" in bad.message


@pytest.mark.parametrize(
    ("name", "source", "more", "key"),
    [
        ("team/a", "s3://weights/l/*", {}, "name"),
        ("team/*", "s3://weights/l", {}, "source"),
        ("team/*", "gs://weights/l/*", {}, "source"),
        ("team/*", "/adapters/*", {}, "source"),
        ("team*", "s3://weights/l/*", {}, "name"),
        ("team/*", "s3://weights/l/*", {"revision": "main"}, "revision"),
    ],
)
def test_a_prefix_has_a_name_for_all_and_is_in_s3(name: str, source: str, more: dict[str, str], key: str) -> None:
    data = {"engine_config": {"model_id": LLAMA, "lora": [{"name": name, "source": source, **more}]}}
    faults = load_models([], Path(), [Document("m.yaml", data, {})]).findings
    assert f"engine_config.lora[0].{key}" in [one.path for one in faults]


def test_make_plan_lists_the_prefixes_before_it_plans(bucket: Any, tmp_path: Path) -> None:
    workspace = Workspace((below(),), stack(pool("h100", "H100")), CODE, ())
    made = plan_workspace(workspace, tmp_path, deploying=False)
    assert made.gateway.routes[0].model_ids == (LLAMA, "team/own", "team/legal", "team/tax")
    faulty = dataclasses.replace(workspace, models=(below(source="s3://nowhere/l/*"),))
    with pytest.raises(InputErrors, match="NoSuchBucket"):
        plan_workspace(faulty, tmp_path, deploying=False)
