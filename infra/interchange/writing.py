"""A draft as the text of a model file, with comments for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import yaml

from modelfleet.infra.interchange.draft import Draft
from modelfleet.serving.config.holes import HOLE

_WIDTH = 118


def text_of(draft: Draft) -> str:
    """The model file: where it comes from, the data with a comment at each hole, and what it has no place for."""
    if draft.text is not None:
        return draft.text
    comments = [one_line(draft.holes[path]) for path in _in_order(draft)]
    lines = [f"# From {one_line(draft.where)}, by `modelfleet import`."]
    if draft.holes:
        lines.append(f"# {HOLE} is what it does not say: fill it in; `modelfleet check` names each.")
    for line in yaml.safe_dump(draft.data, sort_keys=False, width=_WIDTH, allow_unicode=True).splitlines():
        hole = line.endswith(f": {HOLE}")
        lines.append(f"{line}  # {comments.pop(0)}" if hole and comments else line)
    if draft.notes:
        lines.append("# Not carried over:")
        for note in draft.notes:
            lines += textwrap.wrap(
                f"{one_line(note.what)}: {one_line(note.why)}", _WIDTH, initial_indent="# - ", subsequent_indent="#   ",
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return "\n".join(lines) + "\n"


def one_line(text: str) -> str:
    """Text without line breaks and control characters, so that it cannot leave its comment."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _in_order(draft: Draft) -> Iterator[tuple[str | int, ...]]:
    """The holes as they come in the file."""
    for section, keys in draft.data.items():
        if isinstance(keys, dict):
            yield from _below(keys, (section,), draft)


def _below(data: dict[str, object], path: tuple[str | int, ...], draft: Draft) -> Iterator[tuple[str | int, ...]]:
    for key, value in data.items():
        if (*path, key) in draft.holes:
            yield (*path, key)
        elif isinstance(value, dict):
            yield from _below(value, (*path, key), draft)
