"""Renames, moves and removals on a document, recorded so that `check --fix` can repeat them on the file."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Final

from modelfleet.serving.config.document import Document, KeyPath
from modelfleet.serving.config.errors import Finding, Severity


class _Missing:
    """What `Rewriter.get` returns where there is no key, because null is a value."""


MISSING: Final = _Missing()


@dataclass(frozen=True)
class Edit:
    """One change: the entry at `path` goes, and `puts` replace it, in its place where possible."""

    path: KeyPath
    puts: tuple[tuple[KeyPath, Any], ...] = ()


@dataclass
class Rewriter:
    """A working copy of a document's data. Each change leaves a finding at the line of what was changed."""

    document: Document
    data: Any = field(init=False)
    edits: list[Edit] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.data = copy.deepcopy(self.document.data)
        self.lines = dict(self.document.lines)

    def get(self, *path: str) -> Any:
        """The value at `path`, or MISSING."""
        current = self.data
        for part in path:
            if not isinstance(current, dict) or part not in current:
                return MISSING
            current = current[part]
        return current

    def mapping(self, *path: str) -> dict[str, Any]:
        """The mapping at `path`; empty where there is none."""
        value = self.get(*path)
        return value if isinstance(value, dict) else {}

    def rename(self, path: KeyPath, *targets: KeyPath, message: str, value: Any = MISSING) -> None:
        """Move the entry at `path` to each of `targets`, with its value or `value`; a target that exists is kept."""
        moved = self.get(*map(str, path)) if value is MISSING else value
        free = [target for target in targets if self.get(*map(str, target)) is MISSING]
        taken = [target for target in targets if target not in free]
        if taken:
            message += f"; {', '.join(str(target[-1]) for target in taken)} is here too and counts"
        self._note(path, message, Severity.WARNING if taken else Severity.NOTICE)
        self._apply(Edit(path, tuple((target, moved) for target in free)))

    def replace(self, path: KeyPath, value: Any, *, message: str, severity: Severity = Severity.NOTICE) -> None:
        """Give the entry at `path` another value."""
        self._note(path, message, severity)
        self._apply(Edit(path, ((path, value),)))

    def put(self, path: KeyPath, value: Any, *, message: str, because_of: KeyPath) -> None:
        """Add an entry; the finding points at `because_of`, which stays."""
        self._note(because_of, message, Severity.NOTICE)
        self._apply(Edit((), ((path, value),)), because_of)

    def drop(self, path: KeyPath, *, message: str, severity: Severity = Severity.NOTICE) -> None:
        """Remove the entry at `path`."""
        self._note(path, message, severity)
        self._apply(Edit(path))

    def refuse(self, path: KeyPath, message: str) -> None:
        """An error at `path`."""
        self._note(path, message, Severity.ERROR)

    def result(self) -> Document:
        """The document after all changes, each key with the line it came from."""
        return Document(self.document.file, self.data, self.lines, self.document.findings)

    def _note(self, path: KeyPath, message: str, severity: Severity) -> None:
        self.findings.append(self.result().finding(path, message, severity))

    def _apply(self, edit: Edit, because_of: KeyPath = ()) -> None:
        source = edit.path or because_of
        inner = {path[len(source) :]: line for path, line in self.lines.items() if path[: len(source)] == source}
        line = self.result().line(source)
        apply(self.data, edit)
        if edit.path:
            self.lines = {path: at for path, at in self.lines.items() if path[: len(source)] != source}
        for target, _ in edit.puts:
            self.lines[target] = line
            if edit.path:
                self.lines |= {(*target, *rest): at for rest, at in inner.items()}
        self.edits.append(edit)


def apply(data: Any, edit: Edit) -> None:
    """Do `edit` on nested mappings and keep the order: a new key takes the old one's place."""
    parent: dict[Any, Any] | None = None
    position = 0
    if edit.path:
        removed_from = parent = _parent(data, edit.path)
        position = list(removed_from).index(edit.path[-1])
        del removed_from[edit.path[-1]]
    for target, value in edit.puts:
        mapping = _parent(data, target)
        if mapping is parent:
            _insert(mapping, position, target[-1], value)
            position += 1
        else:
            mapping[target[-1]] = value


def _parent(data: Any, path: KeyPath) -> dict[Any, Any]:
    """The mapping that holds `path`; missing sections are made."""
    current: dict[Any, Any] = data
    for part in path[:-1]:
        if not isinstance(current.get(part), dict):
            current[part] = {}
        current = current[part]
    return current


def _insert(mapping: dict[Any, Any], position: int, key: Any, value: Any) -> None:
    """Like ruamel's `CommentedMap.insert`, for plain dicts too."""
    if hasattr(mapping, "insert"):
        mapping.insert(position, key, value)
        return
    later = list(mapping.items())[position:]
    for name, _ in later:
        del mapping[name]
    mapping[key] = value
    mapping.update(later)
