"""Finds vLLM's server in a command: behind shells, `docker run`, wrappers, or only in the image's entry point."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from modelfleet.infra.interchange.shell import Command, is_script, read_script, split
from modelfleet.infra.interchange.workload import unknowns

_MODULE = re.compile(r"vllm\.entrypoints(\.(openai|launchers|cli)\.\w+|\.api_server|\.openai)(\.\w+)*|vllm")
_SCRIPT = re.compile(r"(.*/)?vllm/entrypoints/\S*api_server\.py|(.*/)?vllm_engine\.py")
#: Images whose entry point is vLLM's server, so that a container's arguments are the server's.
_SERVER_IMAGE = re.compile(
    r"vllm[-_]?(openai|cpu|gaudi|neuron|tpu|rocm|xpu|inference|serve)|/vllm(:|@|$)|llm-d(-cuda|-xpu|-cpu)?(:|@|$)"
)
_CONTAINER_TOOLS = frozenset({"docker", "podman", "nerdctl"})
#: `docker run` options without a value; every other one takes the next word.
_LONE = frozenset(
    {
        "d", "i", "t", "it", "ti", "P", "q", "rm", "init", "privileged", "detach", "interactive", "tty", "publish-all",
        "read-only", "no-healthcheck", "oom-kill-disable", "replace", "quiet", "sig-proxy", "disable-content-trust",
    }
)  # fmt: skip
_HELP = frozenset({"-h", "--help"})


@dataclass(frozen=True)
class Server:
    """vLLM's server as a command has it. `gpus` is how many `docker run` gives it."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    gpus: int | None = None


def starts_vllm(image: str) -> bool:
    """Whether an image's own entry point is vLLM's server."""
    return bool(_SERVER_IMAGE.search(image.lower()))


def mentions_vllm(text: str) -> bool:
    """Whether a text can hold a command of the server at all."""
    return "vllm" in text.lower()


def servers_in(words: Sequence[str], environment: Mapping[str, str], depth: int = 0) -> Iterator[Server]:
    """Every server that a command starts."""
    if depth > 4 or not words:
        return
    if words[0].rsplit("/", 1)[-1] in _CONTAINER_TOOLS and "run" in words[:3]:
        yield from _container(words[words.index("run") + 1 :], environment)
    elif (at := _entry(words)) is not None:
        if not _HELP & set(words[at:]):
            yield Server(tuple(words[at:]), environment)
    elif is_script(words) or any(re.search(r"\s", word) and mentions_vllm(word) for word in words):
        for word in words[1:]:
            if mentions_vllm(word) and re.search(r"\s", word):
                yield from servers_of_script(word, environment, depth + 1)


def servers_of_script(text: str, environment: Mapping[str, str], depth: int = 0) -> Iterator[Server]:
    """Every server that a script starts."""
    for found in read_script(text, environment):
        if isinstance(found, Command):
            yield from servers_in(found.words, found.environment, depth)


def _entry(words: Sequence[str]) -> int | None:
    """Where the server's arguments begin: after `vllm serve`, `-m vllm.entrypoints…` or the script of that module."""
    for at, word in enumerate(words):
        after = words[at + 1] if at + 1 < len(words) else ""
        if word.rsplit("/", 1)[-1] == "vllm" and after == "serve":
            return at + 2
        if word == "-m" and _MODULE.fullmatch(after):
            # `python -m vllm serve …` is the command again.
            return at + 3 if list(words[at + 2 : at + 3]) == ["serve"] else at + 2
        if _SCRIPT.fullmatch(word):
            return at + 1
    return None


def _container(words: Sequence[str], outside: Mapping[str, str]) -> Iterator[Server]:
    """What follows `docker run`."""
    environment, gpus, entrypoint, at = {}, None, [], 0
    while at < len(words) and words[at].startswith("-"):
        option, sign, value = words[at].partition("=")
        name = option.lstrip("-")
        at += 1
        if not sign and name not in _LONE:
            value = words[at] if at < len(words) else ""
            at += 1
        if name in ("e", "env"):
            key, given, text = value.partition("=")
            environment[key] = text if given else outside.get(key, "")
        elif name == "gpus":
            gpus = _gpus(value)
        elif name == "entrypoint":
            entrypoint = split(value)
    image, rest = (words[at] if at < len(words) else ""), [*entrypoint, *words[at + 1 :]]
    found = list(servers_in(rest, environment, 1)) if rest else []
    if not found and starts_vllm(image) and (not entrypoint or entrypoint == ["vllm"]):
        rest = rest[2:] if rest[:2] == ["vllm", "serve"] else rest[1:] if rest[:1] == ["serve"] else rest
        found = [Server(tuple(rest))] if not _HELP & set(rest) else []
    for server in found:
        yield Server(server.arguments, environment, image, gpus)


def _gpus(value: str) -> int | None:
    """Of `all`, `2`, `"device=0,1"`; None where it does not say how many."""
    if list(unknowns(value)):
        return None
    text = value.strip("\"'")
    if text.isdigit():
        return int(text)
    return len(text.removeprefix("device=").split(",")) if text.startswith("device=") else None
