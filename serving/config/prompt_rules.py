"""Rules of `prompt_format`: what its templates may contain. A template is a Python format string, as in RayLLM."""

from __future__ import annotations

import string
from collections.abc import Iterator

TEMPLATES = ("system", "assistant", "user")


def template_faults(name: str, template: str, *, system_in_user: bool) -> Iterator[str]:
    """What is wrong with the template `name`, one sentence each."""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        yield f"is not a format string: {error}; write {{{{ and }}}} for literal braces"
        return
    allowed = ["instruction", "system"] if name == "user" and system_in_user else ["instruction"]
    fields = [(field, spec, conversion) for _, field, spec, conversion in pieces if field is not None]
    for field, spec, conversion in fields:
        if field not in allowed:
            yield _unknown(name, field, allowed)
        elif spec or conversion:
            yield f"found a format after {{{field}}}; write {{{field}}} alone"
    names = {field for field, _, _ in fields}
    if "instruction" not in names:
        yield "has no {instruction}, where the message's text goes"
    if name == "user" and system_in_user and "system" not in names:
        yield "has no {system}, which system_in_user: true needs"


def _unknown(name: str, field: str, allowed: list[str]) -> str:
    if field == "system" and name == "user":
        return "found {system}, which needs system_in_user: true"
    shown = " and ".join(f"{{{one}}}" for one in allowed)
    return f"found the placeholder {{{field[:40]}}}; allowed is {shown}; write {{{{ and }}}} for literal braces"
