"""From nothing to the first token: what each part of a replica's start takes. Pure arithmetic over start-parts.csv.

An estimate: its figures come from one card and a few pages, and a busy region, link or disk changes each of them. What
a stack does once is not part of it: its cluster, its image, the mirrors (`ImagePlan.minutes`, `CopyPlan.seconds`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

from modelfleet.infra.catalog.start_up import start_parts
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.stack.target import Target
from modelfleet.serving.config.accelerators import CPU
from modelfleet.serving.config.schema import ModelConfig

PartName = Literal["node", "image", "ray", "weights", "import", "engine", "load", "compile", "graphs", "token", "seal"]
GIB: Final = 1024**3
#: vLLM's image and what serving/Dockerfile adds, packed, in GiB: 12 GB.
IMAGE_GIB: Final = 11.2
#: What a node has once one replica ran on it, so what a replica that takes another's place does not wait for.
ON_THE_NODE: Final[Collection[PartName]] = ("node", "image", "weights", "seal")
#: What the start of a model takes, about which nothing is known, where its node and the image are there.
UNKNOWN_START_MINUTES: Final = 3


@dataclass(frozen=True)
class StartPart:
    """One part and its seconds. `beside`: the part before it, which runs at the same time."""

    name: PartName
    seconds: float
    beside: bool = False


@dataclass(frozen=True)
class StartUp:
    """The parts in their order. `seconds` is from a pool without nodes to the first token of a replica.

    `again_seconds` is the same where the node, its image and the weights are there: a replica that takes another's
    place.
    """

    parts: tuple[StartPart, ...]
    seconds: float
    again_seconds: float


def start_up(
    config: ModelConfig,
    facts: ModelFacts | None,
    target: Target,
    weight_bytes: int | None,
    node_mib: int,
    *,
    sealed: bool = False,
) -> StartUp | None:
    """The start of one replica of a model; None where nothing is known about its size.

    `weight_bytes` are those of its checkpoint, `node_mib` is its node's memory: weights that are larger are read from
    the disk. The parts that a target does not have are left out. A `sealed` compile cache is there, and is copied.
    """
    if facts is None or weight_bytes is None:
        return None
    kwargs = config.engine_config.engine_kwargs
    known, gib = start_parts(), weight_bytes / GIB
    kind = _kind(config.accelerator)
    streamed = str(kwargs.get("load_format", "")).startswith("runai_streamer")
    download = known["weights", "*"].of(gib)
    load = known["load", kind].of(gib)
    if streamed:
        load = max(download, load)
    elif gib * 1024 > node_mib:  # no page cache holds them
        load = known["load", kind].of() + download
    parts = _node_parts(target, kind)
    # Streamed weights go from the bucket to the GPU and touch no disk.
    parts += [
        StartPart("ray", known["ray", "*"].of()),
        *([StartPart("seal", known["seal", "*"].of())] if sealed else []),
        StartPart("weights", 0.0 if streamed else download),
        StartPart("import", known["import", "*"].of(), beside=True),
        StartPart("engine", (2 if config.scaling_config.num_workers > 1 else 1) * known["engine", "*"].of()),
        StartPart("load", load),
    ]
    if not is_eager(config):
        how = "sealed" if sealed else "mxfp4" if facts.quantization == "mxfp4" else kind
        compiled = known["compile", how]
        parts += [
            StartPart("compile", compiled.of(layers=facts.checkpoint.layers)),
            StartPart("graphs", known["graphs", kind].of()),
        ]
    parts.append(StartPart("token", known["token", "*"].of()))
    return StartUp(tuple(parts), _together(parts, ()), _together(parts, ON_THE_NODE))


def is_eager(config: ModelConfig) -> bool:
    """Whether vLLM compiles nothing: the file says so, or there is no GPU (`serving/engine_args.py`)."""
    return bool(config.engine_config.engine_kwargs.get("enforce_eager")) or config.accelerator == CPU


def unknown_seconds(target: Target, accelerator: str) -> float:
    """The same as `StartUp.seconds` for a model about which nothing is known."""
    return _together(_node_parts(target, _kind(accelerator)), ()) + 60 * UNKNOWN_START_MINUTES


def _kind(accelerator: str) -> Literal["cpu", "gpu"]:
    return "cpu" if accelerator == CPU else "gpu"


def _node_parts(target: Target, kind: str) -> list[StartPart]:
    """Until the image is on a new node."""
    known, parts = start_parts(), list[StartPart]()
    if target.makes_cluster:
        parts.append(StartPart("node", known["node", kind].of()))
    if not target.on_this_machine:
        parts.append(StartPart("image", known["image", "eks" if target.makes_cluster else "cluster"].of(IMAGE_GIB)))
    return parts


def _together(parts: Collection[StartPart], without: Collection[PartName]) -> float:
    """Seconds from the first part to the last: of two beside each other the longer counts."""
    total = before = 0.0
    for part in parts:
        seconds = 0.0 if part.name in without else part.seconds
        total += max(0.0, seconds - before) if part.beside else seconds
        before = seconds
    return total
