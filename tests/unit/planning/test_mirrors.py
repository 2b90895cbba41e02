"""The copies of weights: their size, how long they take, where they run, and what waits for them."""

from __future__ import annotations

import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.kubernetes.ray import timeouts
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.facts import catalog_facts
from modelfleet.serving.config.errors import InputErrors, Severity
from tests.unit.planning.builders import model, planned, pool, stack

LLAMA_70B = "meta-llama/Llama-3.3-70B-Instruct"
BIG = pool("a100", "A100-80G", maxNodes=99)


def copying(*hf_ids: str) -> Plan:
    """A plan whose models have these weights, with what the catalog knows of them."""
    models = [
        model(f"org/m{n}", "A100-80G", workers=8, hf_model_id=hf_id, max_total_tokens=4096)
        for n, hf_id in enumerate(hf_ids)
    ]
    facts = catalog_facts((one.config for one in models), default_catalog())
    return planned(models, stack(BIG), facts=facts)


def test_a_model_of_70b_is_141_gb_and_takes_a_quarter_of_an_hour_beside_the_start_of_its_node() -> None:
    """70.55 · 10^9 values of 2 bytes at 200 MB/s: 706 s, plus 600 s until the node has its image."""
    copies = copying(LLAMA_70B).copies
    assert copies.bytes == pytest.approx(141.1e9, rel=0.01)
    assert copies.seconds == pytest.approx(600 + 706, rel=0.01)
    assert copies.usd == pytest.approx(1306 / 3600 * 0.4032, rel=0.01)


def test_two_nodes_share_three_models() -> None:
    one, three = copying(LLAMA_70B).copies, copying(*[LLAMA_70B] * 3).copies
    assert one.seconds is not None
    assert three.seconds == pytest.approx(600 + 2 * (one.seconds - 600), abs=2)


def test_a_run_waits_for_the_copies_beside_the_models() -> None:
    """It gave up after 90 minutes, while the application waited four hours for its weights."""
    plan = copying(LLAMA_70B)
    assert plan.copies.wait_s == 2 * (plan.copies.seconds or 0)
    assert timeouts(plan).create == timeouts(plan).update == f"{(5400 + plan.copies.wait_s) // 60}m"


def test_a_size_that_is_not_known_is_waited_for_as_long_as_the_models_wait() -> None:
    copies = copying(LLAMA_70B, "org/nobody-knows-it").copies
    assert (copies.bytes, copies.seconds, copies.usd) == (None, None, None)
    assert copies.wait_s == 4 * 3600


def test_copies_that_take_longer_than_models_wait_are_said() -> None:
    """Serve does not try an application again that gave up."""
    assert not [one for one in copying(LLAMA_70B).notices if "copies take" in one.message]
    slow = copying(*[LLAMA_70B] * 60)
    (warning,) = [one for one in slow.notices if "copies take" in one.message]
    assert warning.severity is Severity.WARNING
    assert "need 8,466 GB of weights, whose copies take about 6.0 h; a model gives up after 4 h" in warning.message


def test_no_copies_are_not_waited_for() -> None:
    plan = planned([model()], stack(pool(), mirror={"create": False, "bucket": "code"}))
    assert (plan.copies.models, plan.copies.wait_s, plan.copies.pool) == (0, 0, None)
    assert timeouts(plan).create == "90m"


def test_the_nodes_do_not_depend_on_the_models() -> None:
    """Otherwise a new model would change a node group."""
    assert planned([], stack(pool())).copies.pool == copying(*[LLAMA_70B] * 3).copies.pool


def test_one_job_takes_a_node_and_its_disk_holds_the_image() -> None:
    copies = planned([model()], stack(pool())).copies
    assert copies.pool is not None
    node = copies.pool.node
    assert 2 * copies.job_cpu_millis > 7910, "two would fit a node of 8 vCPUs, beside no daemon set"
    assert copies.job_cpu_millis < node.cpu_millis
    assert (node.root_gib, node.disk_gb, node.gpus) == (100, 85, 0)


def test_the_type_of_the_nodes_can_be_chosen_even_where_the_catalog_does_not_know_it() -> None:
    """Not every region has m7i."""
    copies = planned([model()], stack(pool(), mirror={"instanceType": "m6i.2xlarge"})).copies
    assert copies.pool is not None
    assert (copies.pool.instance_types, copies.pool.usd_per_node_hour) == (("m6i.2xlarge",), None)
    assert (copies.job_cpu_millis, copies.pool.node.root_gib) == (1000, 100)


@pytest.mark.parametrize("target", ["kubernetes", "local"])
def test_a_target_that_makes_no_nodes_has_none_for_copies(target: str) -> None:
    accelerator = {"kubernetes": "L4", "local": "CPU"}[target]
    made = stack(
        pool("own", accelerator, instanceTypes=["g6.xlarge"] if target == "kubernetes" else "auto"), target=target
    )
    copies = planned([model("org/a", accelerator)], made).copies
    assert (copies.pool, copies.models) == (None, 1)


@pytest.mark.parametrize("name", ["mirror", "system"])
def test_a_pool_cannot_have_the_name_of_the_stacks_own(name: str) -> None:
    with pytest.raises(InputErrors, match=rf"pools\[0\].name: found '{name}', which the stack's own nodes have"):
        planned([model()], stack(pool(name)))
