"""`num_gpus_per_worker` below 1: which parts there are, and what does not go with them."""

from __future__ import annotations

import pytest

from modelfleet.serving.config.document import parse_document
from modelfleet.serving.config.errors import Severity
from modelfleet.serving.config.load import model_of
from modelfleet.serving.config.serve_options import actor_options, placement_bundles
from tests.unit.config.test_rules import GOOD, findings_of

ONE = "num_gpus_per_worker: 1"


def quarter(*changes: tuple[str, str], part: str = "0.25") -> str:
    text = GOOD.replace(ONE, f"num_gpus_per_worker: {part}")
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("part", ["0.5", "0.25", "0.125", '"0.25"'])
def test_a_part_says_that_it_bounds_no_time(part: str) -> None:
    (finding,) = findings_of(quarter(part=part))
    assert finding.severity is Severity.NOTICE and "time slicing" in finding.message


@pytest.mark.parametrize("part", ["0.3", "0.75", "1.5", "-0.5", "2"])
def test_every_other_number_is_refused(part: str) -> None:
    (finding,) = [one for one in findings_of(quarter(part=part)) if one.severity is Severity.ERROR]
    assert finding.path.endswith("num_gpus_per_worker")
    assert "0.5, 0.25, 0.125" in finding.message or "change num_workers" in finding.message


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (("num_workers: 1", "num_workers: 2"), "num_gpus_per_worker", "write 1"),
        (
            ("    max_num_seqs: 64\n", "    max_num_seqs: 64\n    distributed_executor_backend: ray\n"),
            "distributed_executor_backend",
            "takes whole ones",
        ),
        (
            ("    max_num_seqs: 64\n", "    max_num_seqs: 64\n    gpu_memory_utilization: 0.3\n"),
            "gpu_memory_utilization",
            "more than it has",
        ),
        (
            ("    max_num_seqs: 64\n", "    max_num_seqs: 64\n    kv_cache_memory_bytes: 1000000000\n"),
            "kv_cache_memory_bytes",
            "keeps to no share",
        ),
    ],
)
def test_what_goes_with_whole_cards_only_is_refused(change: tuple[str, str], key: str, words: str) -> None:
    errors = [one for one in findings_of(quarter(change)) if one.severity is Severity.ERROR]
    assert [(one.path.rpartition(".")[2], words in one.message) for one in errors] == [(key, True)]


def test_the_replica_and_its_bundle_have_the_part() -> None:
    loaded = model_of(parse_document(quarter().encode(), "m.yaml"))[0]
    assert loaded is not None
    assert placement_bundles(loaded.config)[0]["GPU"] == actor_options(loaded.config)["num_gpus"] == 0.25


def test_one_is_still_an_integer_so_no_live_replica_restarts() -> None:
    loaded = model_of(parse_document(GOOD.replace(ONE, "num_gpus_per_worker: 1.0").encode(), "m.yaml"))[0]
    assert loaded is not None
    assert repr(loaded.config.scaling_config.num_gpus_per_worker) == "1"
