"""A replica finds out on which card it is, and takes the engine arguments that the plan has counted for that one."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from modelfleet.serving import card as module
from modelfleet.serving.card import Card, on_this_card
from modelfleet.serving.config.accelerators import known_gpus
from modelfleet.serving.errors import EngineError
from modelfleet.serving.replica import VllmReplica
from tests.unit.serving.test_engine_args import model

#: What NVML calls each card; the sources are in accelerators.csv.
NAMES = {
    "Tesla T4": "T4",
    "NVIDIA L4": "L4",
    "NVIDIA A10G": "A10G",
    "NVIDIA L40S": "L40S",
    "NVIDIA A100-SXM4-40GB": "A100-40G",
    "NVIDIA A100-SXM4-80GB": "A100-80G",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000",
    "NVIDIA H200": "H200",
    "NVIDIA B200": "B200",
    "NVIDIA B300 SXM6 AC": "B300",
}
EVERY = [
    Card(accelerator=gpu.name, nvml=list(gpu.nvml), engine_kwargs={"max_num_seqs": number})
    for number, gpu in enumerate(known_gpus().values(), 1)
]
TWO = [card for card in EVERY if card.accelerator in ("L4", "A10G")]


def seen(name: str, cards: list[Card] = EVERY) -> tuple[Any, list[str]]:
    said: list[str] = []
    return on_this_card(model(), cards, said.append, lambda: name).engine_config.engine_kwargs, said


@pytest.mark.parametrize("name", NAMES)
def test_each_card_is_known_by_nvmls_name_of_it_and_by_no_others(name: str) -> None:
    kwargs, said = seen(name)
    (wanted,) = [card for card in EVERY if card.accelerator == NAMES[name]]
    assert kwargs == wanted.engine_kwargs
    assert said == [f"org/name has the engine arguments for {NAMES[name]}: the node's card is {name}"]


def test_no_cards_words_are_among_anothers() -> None:
    """Otherwise the order of the rows would decide which card a node has."""
    words = {gpu.name: set(gpu.nvml) for gpu in known_gpus().values()}
    assert all(words.values()), "a card without words would be every card"
    assert [(a, b) for a in words for b in words if a != b and words[a] <= words[b]] == []


def test_a_card_that_the_plan_has_not_counted_is_refused() -> None:
    """An L40S would take an L4's arguments in silence, and a smaller card would run out of memory."""
    with pytest.raises(EngineError, match="card is 'NVIDIA L40S', but org/name has engine arguments for L4, A10G;"):
        seen("NVIDIA L40S", TWO)


def test_without_a_fallback_nobody_asks_for_the_card() -> None:
    """On CPUs, and where the driver is strange, NVML would end a replica that does not need its answer."""
    own = model()
    assert on_this_card(own, [], pytest.fail, lambda: pytest.fail("asked")) is own


def driver(monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    """NVML as Ray's copy offers it; `name` is what it answers, or raises."""

    def answer(handle: int) -> Any:
        if isinstance(name, Exception):
            raise name
        return name

    nvml = ModuleType("pynvml")
    vars(nvml).update(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=answer,
    )
    import ray._private.thirdparty as parent

    monkeypatch.setattr(parent, "pynvml", nvml, raising=False)
    monkeypatch.setitem(sys.modules, "ray._private.thirdparty.pynvml", nvml)


def test_the_name_is_text_whichever_version_of_nvml_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in ("NVIDIA L4", b"NVIDIA L4"):
        driver(monkeypatch, answer)
        assert module.nvml_name() == "NVIDIA L4"


def test_a_node_without_a_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, RuntimeError("Driver Not Loaded"))
    with pytest.raises(EngineError, match="NVML does not say which card this node has: Driver Not Loaded"):
        module.nvml_name()


def test_a_replica_starts_its_engine_with_the_arguments_of_its_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way from the application's arguments to the model that weights and engine are started with."""
    monkeypatch.setattr(module, "nvml_name", lambda: "NVIDIA A10G")
    monkeypatch.setattr("modelfleet.serving.replica.check_versions", lambda **_: None)
    started = SimpleNamespace(model=None)

    class Stop(Exception):
        pass

    def resolve(one: Any, *_: Any) -> str:
        started.model = one
        raise Stop

    monkeypatch.setattr("modelfleet.serving.replica.resolve", resolve)
    monkeypatch.setattr("modelfleet.serving.replica._import_engine", lambda: None)
    replica = VllmReplica(model().model_dump(mode="json"), {}, [card.model_dump() for card in TWO])
    with pytest.raises(Stop):
        asyncio.run(replica._start())
    assert started.model.engine_config.engine_kwargs == {"max_num_seqs": 3}
