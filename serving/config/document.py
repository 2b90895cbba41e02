"""Reading a YAML file together with the line of every key, safely.

Any bytes at all give a `Document` or findings, never a traceback: size, depth and the number of nodes after
alias expansion are bounded, only plain YAML types are built, and of a repeated key the last wins with a warning
(as PyYAML, and so RayLLM, did).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from serving.config.errors import Finding, InputErrors, Severity

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 50
MAX_NODES = 100_000

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A YAML file's data with the line (from 1) of each key path."""

    file: str
    data: Any
    lines: dict[KeyPath, int]
    findings: tuple[Finding, ...] = field(default=())

    def line(self, path: KeyPath) -> int:
        """Line of `path`, or of its nearest parent that stands in the file; 0 for an empty file."""
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
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read_document(path: Path, name: str | None = None) -> Document:
    """Read a YAML file.

    Raises `InputErrors` when the file cannot be read, is too large, is not UTF-8 or is not YAML.
    """
    shown = name or str(path)
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputErrors([Finding(shown, 0, "", f"cannot be read: {error.strerror or error}")]) from None
    return parse_document(raw, shown)


def parse_document(raw: bytes, file: str) -> Document:
    """Like `read_document`, over bytes."""
    if len(raw) > MAX_BYTES:
        raise InputErrors([Finding(file, 0, "", f"is larger than {MAX_BYTES} bytes; a model or stack file is a few KiB")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputErrors([Finding(file, line, "", f"byte {error.start} is not UTF-8; save the file as UTF-8")]) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return _Builder(file).document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InputErrors([Finding(file, mark.line + 1 if mark else 0, "", f"is not YAML: {error.problem or error.context}")]) from None
    except yaml.YAMLError as error:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise InputErrors([Finding(file, line, "", f"is not YAML: {getattr(error, 'reason', error)}")]) from None
    except RecursionError:
        raise InputErrors([Finding(file, 0, "", f"is nested deeper than {MAX_DEPTH} levels")]) from None


class _Builder:
    """Builds plain data from composed nodes, noting lines and counting what aliases expand to."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[KeyPath, int] = {}
        self.findings: list[Finding] = []
        self.nodes = 0
        self.scalars = yaml.SafeLoader("")

    def document(self, node: yaml.Node | None) -> Document:
        data = None if node is None else self.build(node, ())
        return Document(self.file, data, self.lines, tuple(self.findings))

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.stop(line, path, f"expands to more than {MAX_NODES} values; anchors and aliases multiply")
        if len(path) > MAX_DEPTH:
            self.stop(line, path[:4], f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        return self.scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        self.scalars.flatten_mapping(node) if any(k.tag == "tag:yaml.org,2002:merge" for k, _ in node.value) else None
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.stop(line, path, "has a key that is a list or a mapping; keys are names")
            key = str(key_node.value)
            here = (*path, key)
            if key in result:
                message = f"stands twice (first in line {self.lines[here]}); the last one counts"
                self.findings.append(Finding(self.file, line, dotted(here), message, Severity.WARNING))
            self.lines[here] = line
            result[key] = self.build(value_node, here)
        return result

    def scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        try:
            value = self.scalars.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            reason = getattr(error, "problem", None) or str(error)
            self.stop(node.start_mark.line + 1, path, f"has a value that cannot be read: {reason}")
        if value is None or isinstance(value, str | bool | int | float):
            return value
        return str(node.value)

    def stop(self, line: int, path: KeyPath, message: str) -> Any:
        raise InputErrors([Finding(self.file, line, dotted(path), message)])
