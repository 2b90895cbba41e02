"""The further stages of a replica over several nodes, without Ray's processes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from modelfleet.serving.errors import WeightsError
from modelfleet.serving.stages import Stage, Stages, _why
from tests.unit.serving.test_engine_args import model


def stages(count: int, **methods: Any) -> Stages:
    made = Stages.__new__(Stages)
    made._count = count
    made._actors = [
        SimpleNamespace(**{name: SimpleNamespace(remote=method) for name, method in methods.items()})
        for _ in range(count - 1)
    ]
    return made


def test_each_stage_has_the_replicas_arguments_its_own_folders_and_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_HOST_IP", "")
    monkeypatch.setattr("modelfleet.serving.stages.own_address", lambda: "10.0.0.7")
    begun: list[dict[str, Any]] = []
    made = stages(3, run=begun.append)
    first = made.begin({"model": "/a", "tokenizer": "/t", "enforce_eager": True}, [{"model": "/b"}, {"model": "/c"}])
    assert [one["model"] for one in (first, *begun)] == ["/a", "/b", "/c"]
    assert [one["node_rank"] for one in (first, *begun)] == [0, 1, 2]
    port = first["master_port"]
    for one in (first, *begun):
        assert one["enforce_eager"] and one["tokenizer"] == "/t" and one["nnodes"] == 3
        assert (one["master_addr"], one["master_port"]) == ("10.0.0.7", port)


def test_what_kept_a_stage_from_its_weights_is_its_own_line() -> None:
    async def fails() -> None:
        raise RayTaskError("fetch", "Traceback of that node", WeightsError("no weights")).as_instanceof_cause()

    with pytest.raises(WeightsError) as raised:
        asyncio.run(stages(2, fetch=fails).fetch())
    assert str(raised.value) == "no weights"


def test_a_disk_that_is_full_on_a_further_node_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device", "/cache/model.safetensors")

    monkeypatch.setattr("modelfleet.serving.stages.check_versions", lambda **_: None)
    monkeypatch.setattr("modelfleet.serving.stages.resolve", full)
    stage = Stage.__new__(Stage)  # its `__init__` changes the process
    stage._model, stage._weights = model(), {}
    with pytest.raises(WeightsError, match=r"^org/name: its weights cannot be fetched: .*No space left .*'/cache"):
        stage.fetch()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RayTaskError("run", "Traceback of that node", ValueError("no\n  port")), "ValueError: no port"),
        (
            RayTaskError("run", "Traceback of that node", ValueError("no port")).as_instanceof_cause(),
            "ValueError: no port",
        ),
        (RayActorError(error_msg="The actor died\nunexpectedly"), "The actor died unexpectedly"),
        (None, "a worker of it ended"),
    ],
)
def test_why_a_stage_ended_is_one_line_without_a_traceback(
    error: Exception | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(_: Any) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr("ray.get", get)
    assert _why(None) == words
