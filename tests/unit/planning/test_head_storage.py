"""Whether a stack makes a store for the Ray head's state, what it costs, and what it may not be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.plan import HeadStoragePlan
from modelfleet.serving.config.errors import InputErrors
from tests.unit.planning.builders import model, planned, pool, stack

IMAGE = {"image": "registry.example/serving:1"}
PROTECTED = {"deletionProtection": True}
TWO_SMALL = HeadStoragePlan("cache.t4g.micro", 2)


def made(*, cluster: dict[str, Any] | None = None, **kubernetes: Any) -> Plan:
    return planned([model()], stack(pool(), cluster=cluster or {}, kubernetes={**IMAGE, **kubernetes}))


@pytest.mark.parametrize(
    ("cluster", "kubernetes", "storage"),
    [
        pytest.param({}, {}, None, id="not-by-default"),
        pytest.param(PROTECTED, {}, TWO_SMALL, id="by-default-where-protected"),
        pytest.param(PROTECTED, {"headStorage": "none"}, None, id="unless-it-says-none"),
        pytest.param({}, {"headStorage": "valkey"}, TWO_SMALL, id="where-asked-for"),
        pytest.param(PROTECTED, {"redisAddress": "redis.data:6379"}, None, id="not-beside-an-own-one"),
    ],
)
def test_a_protected_stack_has_a_store_and_others_ask_for_it(
    cluster: dict[str, Any], kubernetes: dict[str, Any], storage: HeadStoragePlan | None
) -> None:
    plan = made(cluster=cluster, **kubernetes)
    assert plan.head_storage == storage
    assert plan.head_survives == (storage is not None or "redisAddress" in kubernetes)


def test_the_store_is_a_line_of_the_plans_cost() -> None:
    without, with_store = made(), made(headStorage="valkey")
    (line,) = set(with_store.fixed) - set(without.fixed)
    assert (line.name, line.count, line.usd_each) == ("Valkey for the Ray head (cache.t4g.micro)", 2, 0.0128)
    assert without.cost.min_usd_per_hour is not None
    assert with_store.cost.min_usd_per_hour == pytest.approx(without.cost.min_usd_per_hour + 2 * 0.0128)


def test_the_price_of_the_store_is_dated() -> None:
    price = default_catalog().prices["us-east-1", TWO_SMALL.node_type]
    assert price.date == "2026-06-30"


def test_only_a_stack_with_its_own_network_makes_a_store() -> None:
    with pytest.raises(InputErrors) as caught:
        planned([model()], stack(pool(), target="kubernetes", kubernetes={**IMAGE, "headStorage": "valkey"}))
    found = "\n".join(finding.sentence() for finding in caught.value.findings)
    assert "kubernetes.headStorage: found 'valkey', which target eks makes in its own network" in found
    assert "name it in redisAddress" in found


@pytest.mark.parametrize("storage", ["valkey", "none"])
def test_a_store_to_make_and_one_that_exists_are_not_named_together(storage: str) -> None:
    with pytest.raises(ValidationError, match="beside redisAddress"):
        made(headStorage=storage, redisAddress="redis.data:6379")


@pytest.mark.parametrize("address", ["redis.data", "https://redis.data:6379", "redis.data:port", "redis://"])
def test_an_address_that_ray_cannot_read_is_refused(address: str) -> None:
    """Ray takes `host:port`, `redis://host:port`, `rediss://host:port` (2.60 `_private/services.py` `get_address`)."""
    with pytest.raises(ValidationError, match="host:port"):
        made(redisAddress=address)
