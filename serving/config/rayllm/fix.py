"""`modelfleet check --fix`: writes today's names into the file and leaves everything else byte for byte.

`legacy.py` edits the data; this module repeats each edit on the text, where the YAML parser saw the key. It never
touches comments, order, quotes or blank lines; a YAML library would lay out the whole file anew. If the new text does
not read as the edited data, the file stays as it is.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from modelfleet.serving.config.document import Document, KeyPath, parse_document, read_document, yaml_errors
from modelfleet.serving.config.errors import Finding, InputErrors, Severity
from modelfleet.serving.config.rayllm.legacy import normalise
from modelfleet.serving.config.rayllm.rewriting import Edit, Rewriter, apply
from modelfleet.serving.config.rayllm.yaml_text import (
    NOTHING,
    Entry,
    compose_text,
    end_of,
    entries_of,
    find_entry,
    line_end_after,
    names_of,
    newline_of,
    node_at,
    one_line,
    says,
    scalars_in,
)

_BOM = "\N{BYTE ORDER MARK}"
_COMMENT = re.compile(r"(?:^|\s)(#.*)$")


def fix_file(path: Path) -> list[Finding]:
    """Rewrite the file at `path` to today's names; returns a notice for each change.

    Raises `InputErrors` when the file is not YAML or cannot be rewritten.
    """
    document = read_document(path)
    text = path.read_bytes().decode("utf-8")
    fixed, findings = fixed_text(text, str(path))
    if fixed != text:
        _write(path, fixed, document)
    return findings


def fixed_text(text: str, file: str) -> tuple[str, list[Finding]]:
    """The text with today's names, and a finding for each change; raises `InputErrors` like `fix_file`."""
    bom = text.startswith(_BOM)
    body = text.removeprefix(_BOM)
    document = parse_document(body.encode(), file)
    rewriter = normalise(document)
    notices = [f for f in rewriter.findings if f.severity is not Severity.ERROR]
    findings = [*document.findings, *notices] if rewriter.edits or document.findings else []
    if not findings:
        return text, []
    try:
        with yaml_errors(file, body):
            for path in _repeated(body):
                body = _without_repetitions(body, path)
            for edit in rewriter.edits:
                body = _edited(body, edit)
            done = parse_document(body.encode(), file)
    except LookupError as error:  # the key is nowhere in the text itself
        why = "an old name here comes from an anchor or a merge (`<<`)"
        raise InputErrors([_by_hand(document, rewriter, why)]) from error
    except (InputErrors, ValueError) as error:
        raise InputErrors([_by_hand(document, rewriter, f"the text cannot be rewritten safely ({error})")]) from error
    if done.data != _expected(document, rewriter.edits):
        why = "a rewritten key would change another one, through an anchor or a merge (`<<`)"
        raise InputErrors([_by_hand(document, rewriter, why)])
    return (_BOM if bom else "") + body, findings


def add_to_file(path: Path, additions: Mapping[KeyPath, Any]) -> None:
    """Add entries that the file at `path` does not have; raises `InputErrors` like `fix_file`.

    Entries of a section that is missing make it, one line each.
    """
    document = read_document(path)
    text = path.read_bytes().decode("utf-8")
    _write(path, text_with(text, str(path), additions), document)


def replace_in_file(path: Path, key: KeyPath, value: Any) -> None:
    """Give an entry of the file at `path` another value; raises `InputErrors` like `fix_file`."""
    document = read_document(path)
    text = path.read_bytes().decode("utf-8")
    bom, body = text.startswith(_BOM), text.removeprefix(_BOM)
    edit = Edit(key, ((key, value),))
    try:
        with yaml_errors(str(path), body):
            body = _edited(body, edit)
            replaced = parse_document(body.encode(), str(path)).data == _expected(document, [edit])
    except (InputErrors, LookupError, ValueError):
        replaced = False
    if not replaced:
        raise InputErrors([document.finding(key, f"the text cannot be changed safely; write {value!r} by hand")])
    _write(path, (_BOM if bom else "") + body, document)


def text_with(text: str, file: str, additions: Mapping[KeyPath, Any]) -> str:
    """The text with entries that it does not have; raises `InputErrors` when they cannot be added to the text."""
    bom = text.startswith(_BOM)
    body = text.removeprefix(_BOM)
    document = parse_document(body.encode(), file)
    by_section: dict[KeyPath, dict[str | int, Any]] = {}
    for path, value in additions.items():
        by_section.setdefault(path[:-1], {})[path[-1]] = value
    try:
        with yaml_errors(file, body):
            for section, entries in by_section.items():
                body = _with_entries(body, section, entries)
            done = parse_document(body.encode(), file)
        added = done.data == _expected(document, [Edit((), tuple(additions.items()))])
    except (InputErrors, LookupError, ValueError):
        added = False
    if not added:
        names = ", ".join(str(path[-1]) for path in additions)
        raise InputErrors([document.finding((), f"the text cannot be changed safely; add these keys by hand: {names}")])
    return (_BOM if bom else "") + body


def _with_entries(text: str, section: KeyPath, entries: dict[str | int, Any]) -> str:
    if node_at(compose_text(text), section) is NOTHING:
        return _put(text, section, entries, block=True)
    return _put_all(text, tuple(((*section, name), value) for name, value in entries.items()))


def _expected(document: Document, edits: list[Edit]) -> Any:
    """What the file should say afterwards: its data with the edits, but not with what a refusal removed."""
    import copy

    data = copy.deepcopy(document.data)
    for edit in edits:
        apply(data, edit)
    return data


def _by_hand(document: Document, rewriter: Rewriter, why: str) -> Finding:
    names = ", ".join(sorted({str(edit.path[-1]) for edit in rewriter.edits if edit.path}))
    return document.finding((), f"{why}; change these keys by hand: {names}" if names else f"{why}; change it by hand")


def _edited(text: str, edit: Edit) -> str:
    root = compose_text(text)
    if not edit.path:
        return _put_all(text, edit.puts)
    entry = find_entry(root, edit.path)
    here = [(path[-1], value) for path, value in edit.puts if path[:-1] == edit.path[:-1]]
    elsewhere = tuple(put for put in edit.puts if put[0][:-1] != edit.path[:-1])
    text = _renamed(text, entry, here) if here else _removed(text, root, entry, edit.path)
    return _put_all(text, elsewhere)


def _renamed(text: str, entry: Entry, names: list[tuple[str | int, Any]]) -> str:
    """The entry under its new names: the first in its place, the others after it."""
    old = text[entry.value.start_mark.index : entry.end]
    copies = [f"{name}: {old if says(old, value) else one_line(value)}" for name, value in names]
    indent = " " * entry.column
    between = ", " if entry.in_flow else f"{newline_of(text)}{indent}"
    gap = text[entry.key.end_mark.index : entry.value.start_mark.index] if old else ": "
    copies[0] = copies[0].replace(": ", gap, 1) if gap.strip() == ":" else copies[0]
    if len(copies) == 1 or entry.in_flow:
        return text[: entry.start] + between.join(copies) + text[entry.end :]
    line_end = line_end_after(text, entry.end)
    rest = text[entry.end : line_end]
    more = "".join(between + copy for copy in copies[1:])
    return text[: entry.start] + copies[0] + rest + more + text[line_end:]


def _removed(text: str, root: yaml.Node, entry: Entry, path: KeyPath) -> str:
    """The text without the entry; its comments stay on their own lines."""
    if len(entry.mapping.value) == 1 and len(path) > 1:
        text = _cut(text, entry)
        parent = find_entry(root, path[:-1])
        colon = text.index(":", parent.key.end_mark.index) + 1
        return text if entry.in_flow else f"{text[:colon]} {{}}{text[colon:]}"
    return _cut(text, entry)


def _cut(text: str, entry: Entry) -> str:
    if entry.in_flow:
        siblings = entry.mapping.value
        if entry.index + 1 < len(siblings):
            return text[: entry.start] + text[siblings[entry.index + 1][0].start_mark.index :]
        start = end_of(siblings[entry.index - 1][1]) if entry.index else entry.start
        return text[:start] + text[entry.end :]
    start = text.rfind("\n", 0, entry.start) + 1
    stop = min(line_end_after(text, entry.end) + len(newline_of(text)), len(text))
    return text[:start] + _comments(text, entry, start, stop) + text[stop:]


def _comments(text: str, entry: Entry, start: int, stop: int) -> str:
    """Comments between `start` and `stop`, outside of scalars, each on a line at the entry's column."""
    masked = list(text[start:stop])
    for node in scalars_in(entry.value):
        for position in range(node.start_mark.index, min(node.end_mark.index, stop)):
            if masked[position - start] not in "\r\n":
                masked[position - start] = "."
    lines = "".join(masked).splitlines()
    found = [match[1] for line in lines if (match := _COMMENT.search(line))]
    return "".join(f"{' ' * entry.column}{comment}{newline_of(text)}" for comment in found)


def _put_all(text: str, puts: tuple[tuple[KeyPath, Any], ...]) -> str:
    for path, value in puts:
        text = _put(text, path, value)
    return text


def _put(text: str, path: KeyPath, value: Any, *, block: bool = False) -> str:
    """A new entry after the last one-line entry of its mapping, which is made where it is missing.

    `block` writes the entries of a new section below each other.
    """
    root = compose_text(text)
    mapping: yaml.Node = root if len(path) == 1 else node_at(root, path[:-1])
    if mapping is NOTHING:
        return _put(text, path[:-1], {path[-1]: value}, block=block)
    if not isinstance(mapping, yaml.MappingNode) or not mapping.value:
        start, end = mapping.start_mark.index, mapping.end_mark.index
        before = "" if end > start else " "
        return f"{text[:start]}{before}{{{path[-1]}: {one_line(value)}}}{text[end:]}"
    entries = [Entry(key, node, mapping, index) for index, (key, node) in enumerate(mapping.value)]
    if mapping.flow_style:
        end = entries[-1].end
        return f"{text[:end]}, {path[-1]}: {one_line(value)}{text[end:]}"
    lines = [e for e in entries if isinstance(e.value, yaml.ScalarNode) and e.value.style not in ("|", ">")]
    indent, newline = " " * entries[0].column, newline_of(text)
    inside = _below(value, indent, newline) if block else f" {one_line(value)}"
    if not lines:
        start = entries[0].opening
        return f"{text[:start]}{path[-1]}:{inside}{newline}{indent}{text[start:]}"
    end = line_end_after(text, lines[-1].end)
    return f"{text[:end]}{newline}{indent}{path[-1]}:{inside}{text[end:]}"


def _below(section: dict[str | int, Any], indent: str, newline: str) -> str:
    """The entries of a section, each on a line of its own."""
    return "".join(f"{newline}{indent}  {name}: {one_line(value)}" for name, value in section.items())


def _repeated(text: str) -> list[KeyPath]:
    """Mappings with a repeated key, innermost last."""
    found: list[KeyPath] = []
    seen: set[int] = set()

    def walk(node: yaml.Node, path: KeyPath) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        names = names_of(node)
        if len(set(names)) < len(names):
            found.append(path)
        for entry in entries_of(node):
            walk(entry.value, (*path, entry.key.value))

    walk(compose_text(text), ())
    return found


def _without_repetitions(text: str, path: KeyPath) -> str:
    """The last of a repeated key stays, because it is the one that counted."""
    while True:
        root = compose_text(text)
        mapping = root if not path else find_entry(root, path).value
        last = {entry.key.value: entry.index for entry in entries_of(mapping)}
        names = names_of(mapping)
        earlier = [e for e in entries_of(mapping) if e.key.value in names and last[e.key.value] > e.index]
        if not earlier:
            return text
        text = _cut(text, earlier[0])


def _write(path: Path, text: str, document: Document) -> None:
    """Writes in one step and keeps the file's mode; a symlink stays a symlink."""
    target = path.resolve()
    mode = stat.S_IMODE(target.stat().st_mode)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
        Path(temporary).chmod(mode)
        Path(temporary).replace(target)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise InputErrors([document.finding((), f"cannot be written: {error.strerror or error}")]) from None
