"""The text of a model file as a person would write it: few keys, a comment with the reason of each choice. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from modelfleet.infra.catalog import REFERENCE_REGION
from modelfleet.infra.catalog.recipes import Recipe
from modelfleet.infra.planning.offers import Offer, Wish
from modelfleet.infra.planning.recipe_findings import ENVIRONMENT, LENGTH, case_of, lacking, smaller_here
from modelfleet.serving.config.accelerators import CPU
from modelfleet.serving.config.document import KeyPath
from modelfleet.serving.config.rayllm.yaml_text import one_line

#: Requests that a replica works on at a time, for each one that its autoscaler aims for (RayLLM's examples).
ONGOING = 2.5


@dataclass(frozen=True)
class NewModel:
    """What the file is about: the public name, its offer, the wish, and how many replicas."""

    model_id: str
    offer: Offer
    wish: Wish
    max_replicas: int
    #: The accelerator was named, not chosen.
    card_was_asked: bool = False
    #: The commit of its weights, where the replica runs code that comes with them.
    revision: str | None = None


def file_text(new: NewModel, recipe: Recipe | None) -> str:
    """The whole file; with the lines that the recipe has for this accelerator."""
    offer, wish = new.offer, new.wish
    chosen = offer.checkpoint.hf_id
    engine = [f"  model_id: {new.model_id}"]
    if chosen != new.model_id:
        engine.append(f"  hf_model_id: {chosen}   # {offer.checkpoint.why}")
    elif (smaller := smaller_here(recipe, chosen, offer.accelerator)) is not None:
        engine.append(f"  hf_model_id: {chosen}   # {smaller} is smaller and answers a little differently")
    if new.revision is not None:
        engine.append(f"  revision: {new.revision}   # replicas run this commit's code; read it")
    engine.append(f"  max_total_tokens: {offer.length}")
    if offer.accelerator.name == CPU:
        engine.append("  # CPUs without bfloat16 instructions are faster with dtype: float32, in twice the memory")
    lines = [
        *(f"# {line}" for line in _reasons(new)),
        "deployment_config:",
        "  autoscaling_config:",
        f"    min_replicas: {wish.min_replicas}",
        f"    max_replicas: {new.max_replicas}",
        f"    target_ongoing_requests: {wish.concurrency}",
        f"  max_ongoing_requests: {round(wish.concurrency * ONGOING)}",
        "engine_config:",
        *engine,
    ]
    scaling = [
        "scaling_config:",
        f"  num_workers: {offer.workers}",
        *_without_gpu(offer),
        "  resources_per_worker:",
        f"    accelerator_type:{offer.accelerator.name}: 0.001",
    ]
    bare = "\n".join([*lines, *scaling]) + "\n"
    return "\n".join([*lines, *_engine_lines(bare, recipe, offer), *scaling]) + "\n"


def _without_gpu(offer: Offer) -> list[str]:
    """What a worker on CPUs says of itself."""
    if offer.accelerator.name != CPU:
        return []
    return ["  num_gpus_per_worker: 0", f"  num_cpus_per_worker: {offer.cpus}"]


def _reasons(new: NewModel) -> Iterator[str]:
    offer, wish, memory = new.offer, new.wish, new.offer.memory
    place, of = f"{offer.workers} × {offer.accelerator.name}", "a GPU"
    if offer.accelerator.name == CPU:
        place, of = f"CPUs ({offer.instance_type})", "a node"
    elif offer.workers == 1:
        place = f"one {offer.accelerator.name}"
    best = f"the {wish.goal} that holds"
    if new.card_was_asked:
        best = "as asked; it holds" if offer.workers == 1 else "the fewest that hold"
    yield (
        f"{new.model_id} on {place}, {best} requests of {offer.length} tokens, {wish.concurrency} at once: "
        f"{offer.usd_per_hour:.2f} USD/h{_where(new)}."
    )
    full = "one request" if memory.full_length_sequences == 1 else f"{memory.full_length_sequences} requests"
    yield (
        f"Of {memory.total_mib / 1024:.1f} GiB {of}, weights take {memory.weights_mib / 1024:.1f} and the KV cache "
        f"{memory.kv_cache_mib / 1024:.1f}: {full} of full length."
    )


def _where(new: NewModel) -> str:
    """The region of a price that is not the reference region's, or that is, where the stack is elsewhere."""
    if new.offer.price_region == new.wish.region == REFERENCE_REGION:
        return ""
    known = new.offer.price_region == new.wish.region
    return f" in {new.offer.price_region}" + ("" if known else f"; the price in {new.wish.region} is not known")


def _engine_lines(bare: str, recipe: Recipe | None, offer: Offer) -> Iterator[str]:
    """`engine_kwargs` and `runtime_env`: what the card needs, and the recipe's settings, each under its reason."""
    kwargs: list[str] = []
    environment: list[str] = []
    if offer.accelerator.name != CPU and not offer.accelerator.bfloat16 and offer.checkpoint.facts.dtype == "bfloat16":
        kwargs.append(f"    dtype: half   # a {offer.accelerator.name} has no bfloat16")
    for setting, lines in lacking(recipe, case_of(yaml.safe_load(bare))) if recipe is not None else ():
        reason = setting.why or {"tools": "tool calls", "reasoning": "thoughts apart from the answer"}.get(
            setting.purpose, setting.purpose
        )
        said = f"# {reason}"
        for part, indent in ((kwargs, "    "), (environment, "      ")):
            mine = [
                (path, value)
                for path, value in lines.items()
                if path != LENGTH and _in_env(path) == (part is environment)
            ]
            if mine:
                part.append(indent + said)
                part += [f"{indent}{path[-1]}: {one_line(value)}" for path, value in mine]
    if recipe is not None and (kwargs or environment):
        yield f"  # Recipe of {recipe.family}: {recipe.source}, {recipe.date}."
    if kwargs:
        yield from ("  engine_kwargs:", *kwargs)
    if environment:
        yield from ("  runtime_env:", "    env_vars:", *environment)


def _in_env(path: KeyPath) -> bool:
    return path[:-1] == ENVIRONMENT
