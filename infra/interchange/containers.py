"""A container, as Kubernetes, Helm values and compose files spell it, into the model servers that it starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from modelfleet.infra.interchange.arguments import parse
from modelfleet.infra.interchange.servers import Server, servers_in, starts_vllm
from modelfleet.infra.interchange.shell import Command, read_script, split
from modelfleet.infra.interchange.tree import mapping, text
from modelfleet.infra.interchange.workload import Note, Workload, unknown, unknowns

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][\w.-]*)\)")
#: What Helm and KServe leave in place of values; a chat template is another language with the same braces.
GO_TEMPLATE = re.compile(r"\{\{-?\s*(?:[.$]|(?:include|if|range|with|tpl|end|else)\b)[^}]*\}\}")
#: More arguments in a variable: KServe's templates have the first, a mini-chart of the field the second.
_MORE_ARGUMENTS = ("VLLM_ADDITIONAL_ARGS", "VLLM_ARGS")


@dataclass(frozen=True)
class Container:
    """What a container runs: `command` replaces the image's entry point, `arguments` follow it."""

    command: Sequence[str] = ()
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    resources: Mapping[str, Any] = field(default_factory=dict)


def container_of(data: Mapping[str, Any]) -> Container:
    """A container of a pod, or the like of it in Helm values."""
    image = data.get("image")
    if isinstance(image, dict):
        image = ":".join(filter(None, (text(image, "repository"), text(image, "tag"))))
    return Container(
        command=words_of(data.get("command")),
        arguments=words_of(data.get("args")),
        environment=environment_of(data.get("env")),
        image=image if isinstance(image, str) else "",
        resources={**mapping(data, "resources", "requests"), **mapping(data, "resources", "limits")},
    )


def words_of(value: Any) -> list[str]:
    """A command as a list, or as one line of text; numbers and booleans as they are written."""
    if isinstance(value, str):
        return split(value)
    return [_word(word) for word in value if word is not None] if isinstance(value, list) else []


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def environment_of(value: Any) -> dict[str, str]:
    """A list of names and values, a list of `NAME=value`, or a mapping; what comes from elsewhere is unknown."""
    if isinstance(value, dict):
        return {
            str(key): _word(one) if isinstance(one, str | int | float) else unknown(str(key))
            for key, one in value.items()
        }
    found: dict[str, str] = {}
    for entry in value if isinstance(value, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            one = entry.get("value")
            found[entry["name"]] = _word(one) if isinstance(one, str | int | float) else unknown(entry["name"])
        elif isinstance(entry, str):
            name, sign, one = entry.partition("=")
            found[name] = one if sign else unknown(name)
    return found


def servers_of(container: Container) -> Iterator[Server]:
    """Every server of a container, by its command or, without one, by its image's entry point."""
    outside = resolved(container.environment)
    command = [references(word, outside) for word in container.command]
    arguments = [references(word, outside) for word in container.arguments]
    found = list(servers_in([*command, *arguments], outside))
    if not found and not command and starts_vllm(container.image):
        found = [Server(tuple(arguments[1:] if arguments[:1] == ["serve"] else arguments))]
    for server in found:
        words = (*_split_joined(server.arguments), *more_arguments(outside))
        yield replace(server, arguments=words, environment=outside, image=server.image or container.image)


def more_arguments(environment: Mapping[str, str]) -> list[str]:
    """Arguments that a runtime's command takes from a variable."""
    texts = (environment.get(name, "") for name in _MORE_ARGUMENTS)
    return [word for text in texts if not list(unknowns(text)) for word in split(text)]


def _split_joined(words: Sequence[str]) -> Iterator[str]:
    """`--max-model-len 4096` in one element is two words to people, and one wrong one to vLLM."""
    for word in words:
        match = re.fullmatch(r"(--?[\w.-]+)[ \t\n]+(\S.*)", word.strip(), re.DOTALL)
        json = re.match(r"--?[\w.-]+[=\s]\s*[\[{]", word.strip())
        if match and json:
            yield from (match[1], match[2].strip())
        elif not json and (match or re.match(r"-\S+\s+-", word)):
            yield from split(word)
        else:
            yield word


def resolved(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables with `$(OTHER)` put in, as a kubelet does with those above."""
    found: dict[str, str] = {}
    for name, value in environment.items():
        found[name] = references(value, found)
    return found


def references(word: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` put in; a name without a value stays in shells' hands, for `$(command)` looks the same."""
    return _REFERENCE.sub(lambda match: "$" if match[0] == "$$" else variables.get(match[1], match[0]), word)


def workloads_of(
    container: Container,
    where: str,
    *,
    downloads: Mapping[str, str] | None = None,
    hardware: Sequence[str] = (),
    replicas: int | None = None,
) -> Iterator[Workload]:
    """The workloads of a container, with what is around it."""
    for server in servers_of(container):
        yield workload_of(server, where, container, downloads=downloads, hardware=hardware, replicas=replicas)


def workload_of(
    server: Server,
    where: str,
    container: Container | None = None,
    *,
    downloads: Mapping[str, str] | None = None,
    hardware: Sequence[str] = (),
    replicas: int | None = None,
) -> Workload:
    """A server's arguments, parsed, with its container's machine."""
    parsed = parse(server.arguments)
    words = [*container.command, *container.arguments] if container else []
    templates = [Note(match[0], "is a template") for word in words if (match := GO_TEMPLATE.search(word))]
    resources = container.resources if container else {}
    gpus, kinds = _gpus(resources)
    return Workload(
        where,
        parsed.arguments,
        frozenset(parsed.unsaid),
        (*parsed.notes, *_room(resources), *templates),
        environment=server.environment if container else {},
        image=server.image,
        gpus=server.gpus if gpus is None else gpus,
        hardware=(*hardware, *kinds),
        replicas=replicas,
        downloads=downloads or {},
    )


def _gpus(resources: Mapping[str, Any]) -> tuple[int | None, tuple[str, ...]]:
    """How many GPUs a container asks for, and the names of the resources for which it does."""
    found = {
        name: str(count)
        for name, count in resources.items()
        if re.search(r"gpu|gaudi|tpu|neuron|npu|xpu|/mig-", str(name))
    }
    counts = [int(count) for count in found.values() if count.isdigit()]
    return (max(counts) if counts else None), tuple(found)


def _room(resources: Mapping[str, Any]) -> Iterator[Note]:
    named = [f"{name} {resources[name]}" for name in ("cpu", "memory") if name in resources]
    if named:
        yield Note(f"requests and limits: {', '.join(named)}", "a worker's pod takes what its node has")


def downloads_of(containers: Sequence[Any]) -> dict[str, str]:
    """Hub ids that earlier steps download, by folder: `hf download ID --local-dir FOLDER`."""
    found: dict[str, str] = {}
    for data in containers:
        if isinstance(data, dict):
            container = container_of(data)
            outside = resolved(container.environment)
            script = " ".join([*container.command, *container.arguments])
            found |= downloads_in(references(script, outside), outside)
    return found


def downloads_in(script: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Hub ids that a script downloads, by folder."""
    found: dict[str, str] = {}
    if "download" not in script:
        return found
    for line in read_script(script.replace(" -c ", " ; "), environment):
        if isinstance(line, Command):
            words = [word for word in line.words if word]
            for tool in ("hf", "huggingface-cli"):
                if tool in words and words[words.index(tool) + 1 : words.index(tool) + 2] == ["download"]:
                    rest = words[words.index(tool) + 2 :]
                    folder = rest[rest.index("--local-dir") + 1] if "--local-dir" in rest[:-1] else ""
                    found |= {folder.rstrip("/"): rest[0]} if rest and not rest[0].startswith("-") else {}
    return found
