"""Where the keys and values are in a YAML text, so that it can change without a new layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from modelfleet.serving.config.document import KeyPath


@dataclass(frozen=True)
class Entry:
    """One `key: value` in the text; `end` is after the value's last character."""

    key: yaml.ScalarNode
    value: yaml.Node
    mapping: yaml.MappingNode
    index: int

    @property
    def start(self) -> int:
        """Before the key's first character."""
        return int(self.key.start_mark.index)

    @property
    def end(self) -> int:
        """After the value's last character."""
        return end_of(self.value)

    @property
    def opening(self) -> int:
        """Before the key, or before the `? ` that announces a long or empty one."""
        before = (self.key.start_mark.buffer or "")[: self.start]
        announced = before.rstrip(" ")
        return len(announced) - 1 if announced.endswith("?") and announced != before else self.start

    @property
    def column(self) -> int:
        """The entry's indentation. The mapping's own mark will not do: it is at its anchor or tag, if it has one."""
        return int(self.key.start_mark.column) - (self.start - self.opening)

    @property
    def in_flow(self) -> bool:
        """Whether the entry is in braces."""
        return bool(self.mapping.flow_style)


NOTHING = yaml.ScalarNode("", "")


def compose_text(text: str) -> yaml.Node:
    """The parsed text with the place of every key; raises `LookupError` for an empty text."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        raise LookupError("the file is empty")
    return root


def find_entry(root: yaml.Node, path: KeyPath) -> Entry:
    """The entry at `path`; raises `LookupError` where it comes from a merge only."""
    node: yaml.Node = root
    entry: Entry | None = None
    for part in path:
        entry = next((e for e in entries_of(node) if e.key.value == part), None)
        if entry is None:
            raise LookupError(part)
        node = entry.value
    if entry is None:
        raise LookupError("no path")
    return entry


def entries_of(node: yaml.Node) -> list[Entry]:
    """The entries of a mapping, in order; none of anything else."""
    if not isinstance(node, yaml.MappingNode):
        return []
    return [Entry(key, value, node, index) for index, (key, value) in enumerate(node.value)]


def node_at(root: yaml.Node, path: KeyPath) -> yaml.Node:
    """The value at `path`, or `NOTHING`."""
    try:
        return find_entry(root, path).value
    except LookupError:
        return NOTHING


def names_of(node: yaml.Node) -> list[str]:
    """The keys of a mapping, repeated ones too, without `<<`."""
    return [entry.key.value for entry in entries_of(node) if entry.key.tag != "tag:yaml.org,2002:merge"]


def scalars_in(node: yaml.Node) -> list[yaml.ScalarNode]:
    """Every scalar below a node."""
    if isinstance(node, yaml.ScalarNode):
        return [node]
    children = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
    return [scalar for child in children for scalar in scalars_in(child)]


def end_of(node: yaml.Node) -> int:
    """After the last character: a block mapping's own end mark is after the comments and blank lines that follow."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return end_of(last[1] if isinstance(last, tuple) else last)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return len(node.end_mark.buffer[: node.end_mark.index].rstrip("\r\n")) if node.end_mark.buffer else 0
    return int(node.end_mark.index)


def line_end_after(text: str, position: int) -> int:
    """Just before the line break that ends the line at `position`."""
    end = text.find("\n", position)
    if end < 0:
        return len(text)
    return end - 1 if text[end - 1] == "\r" and end > position else end


def newline_of(text: str) -> str:
    """The line break that the text uses."""
    return "\r\n" if "\r\n" in text else "\n"


def says(source: str, value: Any) -> bool:
    """Whether a piece of YAML means `value` on its own: `...` is text after a key, but alone it ends a document."""
    try:
        found = yaml.safe_load(source) if source else None
    except (yaml.YAMLError, ValueError):
        return False
    return bool(found == value)


def one_line(value: Any) -> str:
    """A value on one line, as YAML writes it."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return text.strip().removesuffix("...").strip()
