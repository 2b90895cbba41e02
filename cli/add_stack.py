"""A stack file with one model more: its name where no pattern matches it, and a pool where none carries it.

Both are written into the text where the YAML parser saw the lists, so every other byte stays as it is.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import yaml

from modelfleet.infra.planning.offers import Offer
from modelfleet.infra.stack import StackConfig
from modelfleet.serving.config.rayllm.yaml_text import compose_text, end_of, line_end_after, newline_of, node_at

MODELS, POOLS = "modelfleet:models", "modelfleet:pools"


def with_model(text: str, config: StackConfig, slug: str, offer: Offer, replicas: int) -> str:
    """The text of the stack file with what the model needs."""
    if not _chosen(config, slug):
        text = _appended(text, MODELS, slug)
    if any(pool.accelerator == offer.accelerator.name for pool in config.pools):
        return text
    pool = _pool(config, offer, replicas)
    if config.pools:
        return _appended(text, POOLS, pool)
    models = node_at(compose_text(text), ("config", MODELS))
    indent = " " * _column_of_key(text)
    at = line_end_after(text, end_of(models))
    newline = newline_of(text)
    return f"{text[:at]}{newline}{indent}{POOLS}:{newline}{indent}  - {pool}{text[at:]}"


def _chosen(config: StackConfig, slug: str) -> bool:
    """Whether a pattern of the stack matches the file, which is in models/ itself and not in a folder of it."""
    return any(fnmatchcase(slug, pattern.removesuffix(".yaml")) for pattern in config.models if "/" not in pattern)


def _pool(config: StackConfig, offer: Offer, replicas: int) -> str:
    """A pool of its accelerator, of as many nodes as its replicas may take one by one."""
    taken, name = {pool.name for pool in config.pools}, offer.accelerator.name.lower()
    number = 2
    while name in taken:
        name, number = f"{offer.accelerator.name.lower()}-{number}", number + 1
    return f"{{name: {name}, accelerator: {offer.accelerator.name}, maxNodes: {max(1, replicas)}}}"


def _appended(text: str, key: str, item: str) -> str:
    """The text with one item more at the end of a list of `config`, in the list's own style."""
    found = node_at(compose_text(text), ("config", key))
    if not isinstance(found, yaml.SequenceNode):
        raise TypeError(f"{key} is no list")
    if found.flow_style:
        end = found.end_mark.index - 1
        last = end_of(found.value[-1]) if found.value else end
        return f"{text[:last]}{', ' if found.value else ''}{item}{text[last:]}"
    last = found.value[-1]
    start = text.rfind("\n", 0, last.start_mark.index) + 1
    line = text[start : last.start_mark.index]
    indent = line[: line.index("-")]
    at = line_end_after(text, end_of(last))
    return f"{text[:at]}{newline_of(text)}{indent}- {item}{text[at:]}"


def _column_of_key(text: str) -> int:
    config = node_at(compose_text(text), ("config",))
    return int(next(key.start_mark.column for key, _ in config.value if key.value == MODELS))
