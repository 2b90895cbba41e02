"""All that the command prints goes through here: results to stdout, progress and messages to stderr.

rich respects `NO_COLOR` and pipes: colour and spinners appear on a terminal only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from modelfleet.serving.config.errors import Finding, Severity

_STYLE = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTICE: "cyan"}

#: Width of tables in a pipe, which has no width of its own; wide enough that nothing is cut.
PIPE_WIDTH = 160


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, soft_wrap=False, highlight=False, width=None if stream.isatty() else PIPE_WIDTH)


def terminal() -> Console:
    """The terminal on stdout, for a page that is drawn again and again."""
    return _console(stderr=False)


def show(renderable: RenderableType) -> None:
    """A result: a table or a line, to stdout."""
    _console(stderr=False).print(renderable, markup=False) if isinstance(renderable, str) else _console(
        stderr=False
    ).print(renderable)


def show_json(value: Any) -> None:
    """A result for machines, to stdout."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n")


def write(text: str) -> None:
    """A literal result, such as a prompt, to stdout: the text as it is, and a line break."""
    sys.stdout.write(text + "\n")


def say(text: str, style: str = "", *, stderr: bool = True) -> None:
    """A message about progress, to stderr; long lines are not broken, so they can be copied."""
    _console(stderr=stderr).print(Text(text, style=style), soft_wrap=True)


def counted(count: int, word: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def show_findings(findings: Iterable[Finding], *, stderr: bool = True) -> None:
    """Each finding on its own line; `stderr=False` where findings are the command's result."""
    for finding in findings:
        say(finding.sentence(), _STYLE[finding.severity], stderr=stderr)


@contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner on a terminal, one plain line elsewhere."""
    console = _console(stderr=True)
    if not console.is_terminal:
        say(text)
        yield
        return
    with console.status(Text(text)):
        yield
