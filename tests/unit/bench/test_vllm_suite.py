"""The comparison of `make vllm-suite`, and what it takes from where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelfleet.serving.config.errors import SetupError
from tools.vllm_suite import source
from tools.vllm_suite.__main__ import hidden
from tools.vllm_suite.compare import Comparison, compared, read


def results(**outcomes: str) -> str:
    lines = [{"test": f"tests/m.py::{name}", "outcome": one, "why": f"why {one}"} for name, one in outcomes.items()]
    return "\n".join(map(json.dumps, lines))


def comparison(plain: str, ours: str) -> Comparison:
    return compared(read(plain), read(ours), {"m.py::metrics": "shut"})


def test_what_passes_on_vllm_serve_alone_is_lost_unless_it_is_hidden() -> None:
    plain = results(a="passed", b="passed", metrics="passed", c="failed", d="skipped", e="failed")
    ours = results(a="passed", b="failed", metrics="failed", c="failed", d="skipped", e="passed")
    found = comparison(plain, ours)
    assert [one.test for one in found.missing] == ["m.py::b"] and found.missing[0].why == "why failed"
    assert [one.hidden for one in found.lost] == ["", "shut"]
    assert [one.test for one in found.gained] == ["m.py::e"]
    assert found.table().splitlines()[-1].split() == ["all", "3", "2", "1", "1", "1", "1"]


def test_a_test_that_did_not_run_on_our_side_is_lost() -> None:
    (one,) = comparison(results(a="passed"), results()).missing
    assert one.why == "it did not run"


def test_a_test_that_ran_twice_counts_as_passed_when_it_once_did() -> None:
    assert comparison(results(a="passed"), f"{results(a='failed')}\n{results(a='passed')}").lost == []


def test_every_hidden_test_is_in_a_module_that_runs() -> None:
    assert {begin.partition("::")[0] for begin in hidden()} <= set(source.modules())


def test_a_sdist_with_another_hash_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(source, "_fetch", lambda folder: (folder / "vllm-0.32.0.tar.gz").write_bytes(b"other"))
    with pytest.raises(SetupError, match="found SHA-256 d9298a10"):
        source.tests_folder()
    assert not list(tmp_path.rglob("tests"))
