"""The GPUs of this machine, for the local target: which of them serve, as what accelerator, and what is missing. Pure.

In a cluster a pool's accelerator is a promise of its nodes. Here the card is there and was asked, so everything is
counted with what it really has; the accelerator in files only steers which pool a model goes to.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelfleet.infra.catalog import Catalog
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.accelerators import CPU, Accelerator
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.versions import PRETENDED_CARD

#: Oldest driver for the CUDA 13.0 that the pinned torch 2.13.0 brings: 580.65.06 on Linux, and by minor version
#: compatibility every 580 (CUDA 13.0 release notes, table 3; looked up 2026-11-27 in facts on GPUs).
LEAST_DRIVER = 580
#: Oldest card: CUDA 13 compiles nothing below (its release notes, "deprecated architectures").
LEAST_CAPABILITY = (7, 5)
#: Architecture that the pinned set is for.
ARCHITECTURE = "x86_64"
#: vLLM's and NCCL's queues between processes; a container has 64 MiB by default.
LEAST_SHM_MIB = 1024
#: What CUDA reports of NVML's total on a card that is not in the table: 0.98 of a RTX 4090, 0.988 of a RTX 3090. The
#: least that was seen.
USABLE_SHARE = 0.98
#: vLLM's share of a card, and what it must leave beside others' memory for its own context, MiB: it refuses to start
#: where less than its share is free.
DEFAULT_SHARE, MARGIN_MIB = 0.92, 300
#: Others' use is rounded up to this, MiB: a desktop takes more and less by the minute, and each change of the share
#: would restart the model.
STEP_MIB = 1024
#: What a driver that serves nobody reports as used, MiB at most: not others'.
IDLE_MIB = 256
#: A process with less is a desktop's, MiB.
NOTICED_MIB = 1024
#: vLLM's defaults for a server on a card that is not in the table, by its memory in MiB (0.32, `get_batch_defaults`).
LARGE_MIB = 70 * 1024
UTILIZATION = "gpu_memory_utilization"
#: vLLM refuses a share of 0; with this one the fit says in numbers that nothing is left.
LEAST_SHARE = 0.01
#: What replicas that share a card may take of it together, their contexts included.
WHOLE_CARD = 0.98
#: A CUDA context, MiB; the fit's reserve counts as much (`fit.py`).
CONTEXT_MIB = 512
PRETENDED = " (pretended: vLLM's CPU build serves in its place)"
#: What replicas get where the card is pretended: GiB of memory for vLLM's cache, of which the CPU build would take as
#: large a share of the machine as the model has of its card.
PRETENDED_ENVIRONMENT = {PRETENDED_CARD: "1", "VLLM_CPU_KVCACHE_SPACE": "2"}


@dataclass(frozen=True)
class CardUser:
    """A process with memory of a card that is not this stack's."""

    pid: int
    name: str
    mib: int


@dataclass(frozen=True)
class Card:
    """One GPU as its driver describes it; memory in MiB. `others_mib` is what is used now, and not by this stack."""

    uuid: str
    name: str
    total_mib: int
    capability: tuple[int, int]
    others_mib: int = 0
    users: tuple[CardUser, ...] = ()

    @property
    def kind(self) -> tuple[str, int]:
        """What equal cards have in common."""
        return self.name, self.total_mib


@dataclass(frozen=True)
class Gpus:
    """What this machine has for serving on GPUs. `why_none` says why there are no cards.

    `compiler` and `headers`: a C compiler and Python.h are there.
    `cpu_build`: the vLLM that is installed is the one without GPUs, which would serve on CPUs and say nothing.
    `pretended`: the user asked for just that, to try the whole way without a card (`PRETENDED_CARD` is set).
    """

    cards: tuple[Card, ...] = ()
    driver: str = ""
    why_none: str = ""
    architecture: str = ARCHITECTURE
    shm_mib: int = LEAST_SHM_MIB
    compiler: bool = True
    headers: bool = True
    nvcc: bool = False
    cpu_build: bool = False
    pretended: bool = False


@dataclass(frozen=True)
class CardPlan:
    """The cards that a local stack serves on: `gpus` for Ray, and those of `uuids` alone.

    `named` describes them in one line; `missing` is what stops serving, one sentence each with its fix. Nothing does
    where no model is on a pool of GPUs. `pretended`: vLLM's CPU build serves in place of the card.
    """

    gpus: int
    uuids: tuple[str, ...]
    named: str
    environment: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    pretended: bool = False


def chosen_cards(gpus: Gpus, wanted: int | None = None) -> tuple[Card, ...]:
    """The largest class of equal cards by its memory, in the driver's order; `wanted` of them, all by default.

    vLLM divides a model evenly, so cards that differ do not serve together.
    """
    kinds = {card.kind for card in gpus.cards}
    if not kinds:
        return ()
    classes = [tuple(card for card in gpus.cards if card.kind == kind) for kind in sorted(kinds)]
    return max(classes, key=lambda cards: (sum(card.total_mib for card in cards), cards[0].capability))[:wanted]


def cards_here(stack: LoadedStack, gpus: Gpus | None) -> tuple[Card, ...]:
    """The cards of this machine that serve the stack; none where it serves elsewhere."""
    return chosen_cards(gpus, stack.config.local.gpus) if gpus and stack.config.target.on_this_machine else ()


def accelerator_of(card: Card, known: Mapping[str, Accelerator]) -> Accelerator:
    """The accelerator of a card: the row whose words its name has, else one made of its own facts."""
    words = set(re.split(r"[\s-]+", card.name))
    for row in known.values():
        if row.nvml and words.issuperset(row.nvml):
            return row
    large = card.total_mib >= LARGE_MIB
    return Accelerator(
        name=card.name.removeprefix("NVIDIA "),
        memory_mib=card.total_mib,
        usable_mib=int(card.total_mib * USABLE_SHARE),
        compute_capability=card.capability,
        batched_tokens=8192 if large else 2048,
        sequences=1024 if large else 256,
    )


def on_cards(stack: LoadedStack, gpus: Gpus | None, catalog: Catalog) -> Catalog:
    """The catalog in which the pools' accelerators are this machine's card; as it is where no card was found.

    So a model file for an L4 is counted on the RTX 4090 that is here, and messages name that.
    """
    cards = cards_here(stack, gpus)
    if not cards:
        return catalog
    real = accelerator_of(cards[0], catalog.accelerators)
    steered = {pool.accelerator for pool in stack.config.pools} - {CPU}
    return dataclasses.replace(catalog, accelerators={**catalog.accelerators, **dict.fromkeys(steered, real)})


def share_of(card: Card, usable_mib: int) -> float:
    """The share of a card's memory that vLLM takes beside what others use; 0 where nothing is left."""
    return min(DEFAULT_SHARE, free_share(card, usable_mib))


def free_share(card: Card, usable_mib: int) -> float:
    """The share of a card's memory that others leave; 1 where there are none, 0 where nothing is left."""
    others = math.ceil(card.others_mib / STEP_MIB) * STEP_MIB if card.others_mib > IDLE_MIB else 0
    free = usable_mib - others - (MARGIN_MIB if others else 0)
    return max(0.0, math.floor(100 * free / usable_mib) / 100)


def share_of_part(part: float, whole: float, usable_mib: int) -> float:
    """`gpu_memory_utilization` of a replica that has `part` of a card; 0 where nothing is left. `whole` is what all
    replicas on it may take together.

    vLLM counts no CUDA context in its share (0.32 `vllm/utils/mem_utils.py`), and each replica has one.
    """
    return max(0.0, math.floor(100 * (part * whole - CONTEXT_MIB / usable_mib)) / 100)


def with_share(model: ModelConfig, stack: LoadedStack, gpus: Gpus | None, catalog: Catalog) -> ModelConfig:
    """The model with the share that its card has left, or its part of it."""
    return with_share_of(cards_here(stack, gpus), model, catalog)


def with_share_of(cards: Sequence[Card], model: ModelConfig, catalog: Catalog) -> ModelConfig:
    """The model with its share of the fullest of these cards, or of its accelerator where none is known.

    As it is where its file names one (a null names none), or vLLM's own is free.
    """
    engine, part = model.engine_config, model.scaling_config.num_gpus_per_worker
    card = catalog.accelerators.get(model.accelerator)
    if card is None or model.accelerator == CPU or engine.engine_kwargs.get(UTILIZATION) is not None:
        return model
    if part < 1:
        free = min((free_share(one, card.usable_mib) for one in cards), default=WHOLE_CARD)
        share = share_of_part(part, min(WHOLE_CARD, free), card.usable_mib)
    else:
        share = min((share_of(one, card.usable_mib) for one in cards), default=DEFAULT_SHARE)
        if share == DEFAULT_SHARE:
            return model
    changed = {**engine.engine_kwargs, UTILIZATION: max(LEAST_SHARE, share)}
    return model.model_copy(update={"engine_config": engine.model_copy(update={"engine_kwargs": changed})})


def card_plan(stack: LoadedStack, gpus: Gpus | None) -> CardPlan | None:
    """The cards of a local stack with a pool of GPUs; None for every other stack. It does not depend on models."""
    if not stack.config.target.on_this_machine or all(pool.accelerator == CPU for pool in stack.config.pools):
        return None
    wanted = stack.config.local.gpus
    cards = chosen_cards(gpus, wanted) if gpus else ()
    if gpus is None or not cards:
        why = gpus.why_none if gpus else "nobody looked for one"
        return CardPlan(wanted or 1, (), f"no card: {why}", (), tuple(missing(gpus)) if gpus else ())
    # Weights for cards are too large for the S3 emulator, which holds them in memory: replicas load from the Hub.
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(card.uuid for card in cards), "HF_HUB_OFFLINE": "0"}
    if not gpus.nvcc:
        # FlashInfer compiles its sampler with nvcc, and vLLM asks for it before it looks for nvcc (vllm#49497).
        environment |= {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_USE_DEEP_GEMM": "0"}
    if gpus.pretended:
        environment |= PRETENDED_ENVIRONMENT
    return CardPlan(
        gpus=len(cards),
        uuids=tuple(card.uuid for card in cards),
        named=_named(cards, gpus.driver) + (PRETENDED if gpus.pretended else ""),
        environment=tuple(sorted(environment.items())),
        missing=tuple(missing(gpus)),
        pretended=gpus.pretended,
    )


def _named(cards: Sequence[Card], driver: str) -> str:
    """`2 × NVIDIA H100 80GB HBM3, 79.6 GiB (0.4 GiB used by others), driver 580.65.06`."""
    count = f"{len(cards)} × " if len(cards) > 1 else ""
    used = max(card.others_mib for card in cards)
    others = f" ({used / 1024:.1f} GiB used by others)" if used > IDLE_MIB else ""
    return f"{count}{cards[0].name}, {cards[0].total_mib / 1024:.1f} GiB{others}, driver {driver}"


def missing(gpus: Gpus) -> list[str]:
    """What keeps this machine from serving on GPUs, one sentence each with the one thing to do."""
    if gpus.architecture != ARCHITECTURE:
        message = f"this machine is {gpus.architecture}, and the pinned packages are for {ARCHITECTURE}"
        return [f"{message}; serve on such a machine, or on a cluster's nodes"]
    if not gpus.cards:
        driver = f"install NVIDIA's driver {LEAST_DRIVER} or newer (https://www.nvidia.com/drivers)"
        rest = "run a container with `--gpus all`, or serve on CPUs: make up"
        return [f"no usable NVIDIA card: {gpus.why_none}; {driver}, {rest}"]
    found = []
    if (version := driver_version(gpus.driver)) and version < LEAST_DRIVER:
        found.append(f"driver {gpus.driver} is too old: the pinned CUDA 13.0 needs {LEAST_DRIVER} or newer; update it")
    card = chosen_cards(gpus)[0]
    if (0, 0) < card.capability < LEAST_CAPABILITY:
        has, least = (".".join(map(str, pair)) for pair in (card.capability, LEAST_CAPABILITY))
        found.append(f"{card.name} has compute capability {has}, and CUDA 13 needs {least} (a T4 or newer)")
    if gpus.pretended != gpus.cpu_build:
        found.append(
            f"{PRETENDED_CARD} is set, and the installed vLLM is the one for GPUs; unset it, and that serves"
            if gpus.pretended
            else "the installed vLLM is its CPU build, which does not use the card; run: make setup-gpu"
        )
    if not gpus.compiler:
        found.append("no C compiler, with which Triton builds its launcher; on Debian: apt-get install gcc")
    if not gpus.headers:
        found.append("no Python.h, with which Triton builds its launcher; on Debian: apt-get install python3-dev")
    if gpus.shm_mib < LEAST_SHM_MIB:
        found.append(
            f"shared memory (/dev/shm) has {gpus.shm_mib} MiB, and vLLM needs {LEAST_SHM_MIB}; run the container with "
            "--shm-size 2g, or `mount -o remount,size=2g /dev/shm`"
        )
    return found


def driver_version(driver: str) -> int | None:
    """The number by which drivers are compared: 580 of `580.65.06`; None where the text has none."""
    found = re.match(r"\d+", driver)
    return int(found[0]) if found else None


def card_findings(stack: LoadedStack, gpus: Gpus | None, needed: float, catalog: Catalog) -> list[Finding]:
    """What a user should know of this machine's cards. `needed` are the GPUs of all models at their fewest replicas."""
    config = stack.config
    if gpus is None or card_plan(stack, gpus) is None or not gpus.cards:
        return []
    cards, wanted = chosen_cards(gpus), config.local.gpus
    found = [*_other_names(stack, cards[0], catalog), *_users(stack, cards[:wanted])]
    if wanted and wanted > len(cards):
        message = (
            f"found {wanted}, but this machine has {len(cards)} × {cards[0].name}; write {len(cards)}, or remove it"
        )
        return [*found, stack.finding(("local", "gpus"), message)]
    have = wanted or len(cards)
    if needed > have:
        message = (
            f"the models take {needed:g} GPUs at their fewest replicas, and this machine has {have} "
            f"({cards[0].name}); serve fewer of them here, or give small ones a part: num_gpus_per_worker: 0.5"
        )
        found.append(stack.finding(("models",), message))
    if unequal := sorted({card.name for card in gpus.cards if card.kind != cards[0].kind}):
        message = f"serves on {len(cards)} × {cards[0].name}; unequal cards are left alone: {', '.join(unequal)}"
        found.append(stack.finding(("local",), message, Severity.NOTICE))
    return found


def unused_card_findings(stack: LoadedStack, cards: CardPlan) -> list[Finding]:
    """What would stop serving on cards, where no model is on a pool of GPUs yet."""
    return [
        stack.finding(("local",), f"no model is on a pool of GPUs yet; one would need: {one}", Severity.NOTICE)
        for one in cards.missing
    ]


def _other_names(stack: LoadedStack, card: Card, catalog: Catalog) -> list[Finding]:
    real = accelerator_of(card, catalog.accelerators).name
    return [
        stack.finding(
            ("pools", index, "accelerator"),
            f"found {pool.accelerator}, and this machine has {card.name}; memory and batch are counted with that",
            Severity.NOTICE,
        )
        for index, pool in enumerate(stack.config.pools)
        if pool.accelerator not in (CPU, real)
    ]


def _users(stack: LoadedStack, cards: Sequence[Card]) -> list[Finding]:
    return [
        stack.finding(
            ("local",),
            f"{user.name} (process {user.pid}) has {user.mib / 1024:.1f} GiB of {card.name}, which models cannot use; "
            "end it for more room",
            Severity.NOTICE,
        )
        for card in cards
        for user in card.users
        if user.mib >= NOTICED_MIB
    ]
