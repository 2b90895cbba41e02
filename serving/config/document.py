"""Reads a YAML file together with the line of every key, safely.

Any bytes at all give a `Document` or findings, never a traceback: size, depth and the number of nodes after alias
expansion are bounded, and only plain YAML types are built. When a key is repeated, the last one wins, with a warning;
PyYAML, and so RayLLM, kept the last one too.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from modelfleet.serving.config.errors import Finding, InputErrors, Severity

MAX_BYTES = 64 * 1024
MAX_DEPTH = 50
MAX_NODES = 20_000
MAX_INTEGER = 2**63 - 1

_MERGE = "tag:yaml.org,2002:merge"
_PLAIN_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}

#: How the finding of a key begins that a mapping has twice, which YAML forbids and most readers let pass.
TWICE = "appears twice"

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A YAML file's data with the line (from 1) of each key path."""

    file: str
    data: Any
    lines: dict[KeyPath, int]
    findings: tuple[Finding, ...] = field(default=())

    def line(self, path: KeyPath) -> int:
        """Line of `path`, or of its nearest parent that is in the file; 0 for an empty file."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return 0

    def finding(self, path: KeyPath, message: str, severity: Severity = Severity.ERROR) -> Finding:
        """A finding at `path`."""
        return Finding(self.file, self.line(path), dotted(path), message, severity)


def dotted(path: KeyPath) -> str:
    """`("a", "b", 0)` → `a.b[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{shortened(part)}" if text else shortened(part)
    return text


def shortened(text: str, limit: int = 80) -> str:
    """`text` cut to `limit` characters, for messages that quote a file."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def read_document(path: Path, name: str | None = None) -> Document:
    """Read a YAML file.

    Raises `InputErrors` when the file cannot be read, is too large, is not UTF-8 or is not YAML.
    """
    shown = name or str(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputErrors([Finding(shown, 0, "", "is not a file")])
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputErrors([Finding(shown, 0, "", f"cannot be read: {reason}")]) from None
    return parse_document(raw, shown)


def parse_document(raw: bytes, file: str) -> Document:
    """Like `read_document`, from bytes."""
    if len(raw) > MAX_BYTES:
        raise InputErrors(
            [Finding(file, 0, "", f"is larger than {MAX_BYTES} bytes; a model or stack file is a few KiB")]
        )
    text = decoded(raw, file)
    with yaml_errors(file, text):
        return _Builder(file).document(yaml.compose(text, Loader=yaml.SafeLoader))


def parse_documents(text: str, file: str) -> list[Document]:
    """Every document of a YAML stream, as of several Kubernetes objects, with the same bounds for each."""
    with yaml_errors(file, text):
        return [_Builder(file).document(node) for node in yaml.compose_all(text, Loader=yaml.SafeLoader)]


def decoded(raw: bytes, file: str) -> str:
    """The bytes as text. Raises `InputErrors` when they are not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputErrors(
            [Finding(file, line, "", f"byte {error.start} is not UTF-8; save the file as UTF-8")]
        ) from None


@contextmanager
def yaml_errors(file: str, text: str) -> Iterator[None]:
    """What the parser raises, as a finding."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        found = Finding(file, mark.line + 1 if mark else 0, "", f"is not YAML: {_reason(error)}")
    except yaml.YAMLError as error:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        found = Finding(file, line, "", f"is not YAML: {_reason(error)}")
    except RecursionError:
        found = Finding(file, 0, "", f"is nested deeper than {MAX_DEPTH} levels")
    else:
        return
    raise InputErrors([found])


def _reason(error: yaml.YAMLError) -> str:
    for name in ("problem", "context", "reason"):
        if text := getattr(error, name, None):
            return shortened(str(text), 200)
    return "it cannot be read"


class _Builder:
    """Builds plain data from composed nodes, noting lines and counting what aliases and merges expand to."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[KeyPath, int] = {}
        self.findings: list[Finding] = []
        self.nodes = 0
        self.scalars = yaml.SafeLoader("")
        self.merged: dict[int, list[tuple[yaml.Node, yaml.Node]]] = {}

    def document(self, node: yaml.Node | None) -> Document:
        data = None if node is None else self.build(node, ())
        return Document(self.file, data, self.lines, tuple(self.findings))

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.stop(line, path, f"expands to more than {MAX_NODES} values; use fewer anchors and aliases")
        if len(path) > MAX_DEPTH:
            self.stop(line, path[:4], f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if node.tag not in _PLAIN_TAGS:
            self.stop(line, path, f"has the tag {shortened(node.tag)!r}; only plain YAML is allowed")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in self.entries(node, path):
            line = key_node.start_mark.line + 1
            key = self.key(key_node, path)
            here = (*path, key)
            if key in result:
                message = f"{TWICE} (first on line {self.lines[here]}); the last one counts"
                self.findings.append(Finding(self.file, line, dotted(here), message, Severity.WARNING))
                if isinstance(result[key], dict | list):
                    self.lines = {known: at for known, at in self.lines.items() if known[: len(here)] != here}
            self.lines[here] = line
            result[key] = self.build(value_node, here)
        return result

    def entries(self, node: yaml.MappingNode, path: KeyPath) -> list[tuple[yaml.Node, yaml.Node]]:
        """The entries, after those that `<<` brings in. A mapping is merged once, however many references it has."""
        if not any(key.tag == _MERGE for key, _ in node.value):
            return list(node.value)
        if id(node) in self.merged:
            return self.merged[id(node)]
        self.merged[id(node)] = []  # a mapping that merges itself adds nothing
        own = [(key, value) for key, value in node.value if key.tag != _MERGE]
        names = {key.value for key, _ in own if isinstance(key, yaml.ScalarNode)}
        brought: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for _, value in (entry for entry in node.value if entry[0].tag == _MERGE):
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    self.stop(value.start_mark.line + 1, (*path, "<<"), "merges something that is not a mapping")
                self.bring(self.entries(source, path), names, brought, path)
        self.merged[id(node)] = [*brought.values(), *own]
        return self.merged[id(node)]

    def bring(
        self,
        entries: list[tuple[yaml.Node, yaml.Node]],
        names: set[str],
        brought: dict[str, tuple[yaml.Node, yaml.Node]],
        path: KeyPath,
    ) -> None:
        """Add merged entries, but keep those of the mapping itself and of earlier sources."""
        inside: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in entries:
            self.nodes += 1
            if self.nodes > MAX_NODES:
                self.stop(key.start_mark.line + 1, path, f"expands to more than {MAX_NODES} values; use fewer merges")
            inside[self.key(key, path)] = (key, value)
        for name, entry in inside.items():
            if name not in names:
                brought.setdefault(name, entry)

    def key(self, node: yaml.Node, path: KeyPath) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self.stop(node.start_mark.line + 1, path, "has a key that is a list or a mapping; keys are names")
        return self.text(str(node.value), node, path)

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        try:
            value = self.scalars.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError, ArithmeticError, LookupError, TypeError) as error:
            reason = getattr(error, "problem", None) or str(error)
            self.stop(node.start_mark.line + 1, path, f"has a value that cannot be read: {shortened(reason, 200)}")
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_INTEGER:
            self.stop(node.start_mark.line + 1, path, f"has a number beyond {MAX_INTEGER}")
        if value is None or isinstance(value, bool | int | float):
            return value
        return self.text(value if isinstance(value, str) else str(node.value), node, path)

    def text(self, value: str, node: yaml.Node, path: KeyPath) -> str:
        """Refuses characters, written as escapes, that no file name, request or environment can carry."""
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value):
            self.stop(node.start_mark.line + 1, path, "has an escape for NUL or half a character")
        return value

    def stop(self, line: int, path: KeyPath, message: str) -> NoReturn:
        raise InputErrors([Finding(self.file, line, dotted(path), message)])
