"""Which models' conversations go home, and that the keys for it restart nothing."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from modelfleet.infra.interchange.export import to_ray_serve_llm
from tests.unit.planning.builders import model, planned, pool, stack


def factor(**keys: Any) -> int:
    (route,) = planned([model(**keys)], stack(pool())).gateway.routes
    return route.hash_balance_factor


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, 150),
        ({"deployment": {"hash_balance_factor": 200}}, 200),
        ({"deployment": {"prefix_cache_affinity": False, "hash_balance_factor": 200}}, 0),
        ({"engine_kwargs": {"enable_prefix_caching": False}}, 0),
        ({"engine_kwargs": {"runner": "pooling"}}, 0),
        ({"engine_kwargs": {"runner": "pooling"}, "deployment": {"prefix_cache_affinity": True}}, 150),
    ],
    ids=str,
)
def test_a_model_that_keeps_blocks_for_the_next_turn_has_it_by_default(keys: dict[str, Any], wanted: int) -> None:
    assert factor(**keys) == wanted


def test_the_keys_are_the_gateways_alone_so_a_change_restarts_no_replica() -> None:
    plain, changed = (
        planned([model(deployment=keys)], stack(pool())).models[0].application
        for keys in ({}, {"prefix_cache_affinity": False, "hash_balance_factor": 300})
    )
    assert changed == plain


def test_ray_serve_llm_alone_does_not_get_them() -> None:
    text = to_ray_serve_llm(model(deployment={"prefix_cache_affinity": False, "max_ongoing_requests": 7}))
    (application,) = yaml.safe_load(text)["applications"]
    deployment = application["args"]["llm_configs"][0]["deployment_config"]
    assert deployment["max_ongoing_requests"] == 7 and "prefix_cache_affinity" not in deployment
    assert "prefix_cache_affinity" in text, "it stands in the comments that an import reads back"


def test_policy_and_affinity_act_in_a_cluster_as_here() -> None:
    scaling = {"max_replicas": 2, "policy": "kv_use", "target_kv_use": 0.5}
    one = model(deployment={"prefix_cache_affinity": True, "autoscaling_config": scaling})
    in_a_cluster, here = (planned([one], stack(pool(), target=target)) for target in ("eks", "local"))
    assert in_a_cluster.gateway.routes[0].hash_balance_factor == here.gateway.routes[0].hash_balance_factor > 0
    assert not [notice for notice in in_a_cluster.notices if "deployment_config" in notice.path]
