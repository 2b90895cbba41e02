"""What can go wrong, in one short tree.

    ModelfleetError
    ├── InputErrors   the user's files or arguments are wrong: a list of findings, exit code 1
    └── SetupError    the environment lacks something: what, and the command that gets it, exit code 2

Only `cli/` and `infra/program.py` catch these and print them. No traceback reaches a user for either.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

EXIT_INPUT = 1
EXIT_ENVIRONMENT = 2


class Severity(StrEnum):
    """How much a finding matters: an error stops the run, the others are only shown."""

    ERROR = "error"
    WARNING = "warning"
    NOTICE = "notice"


@dataclass(frozen=True, order=True)
class Finding:
    """One fault or notice about one place in one file.

    `file` is as the user named it, `line` counts from 1 (0: the file as a whole), `path` is the key path
    such as `engine_config.engine_kwargs.max_num_seqs`, `message` says what was found, what is allowed and
    the fix, in one line.
    """

    file: str
    line: int
    path: str
    message: str
    severity: Severity = field(default=Severity.ERROR, compare=False)

    def sentence(self) -> str:
        """The finding as one line: `models/x.yaml:14: engine_config.type: …`."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        mark = "" if self.severity is Severity.ERROR else f"{self.severity.value}: "
        key = f"{self.path}: " if self.path else ""
        return shortened(one_line(f"{place}: {mark}{key}{self.message}"))

    def as_json(self) -> dict[str, Any]:
        """The finding for `--json`."""
        return {
            "file": self.file,
            "line": self.line,
            "path": self.path,
            "severity": self.severity.value,
            "message": one_line(self.message),
        }


class ModelfleetError(Exception):
    """Base of every error that a user sees as plain words."""

    exit_code = EXIT_ENVIRONMENT


class InputErrors(ModelfleetError):
    """The user's files are wrong: every finding at once, sorted by file and line."""

    exit_code = EXIT_INPUT

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(sorted(findings))
        super().__init__("\n".join(finding.sentence() for finding in self.findings))


class SetupError(ModelfleetError):
    """The environment lacks something; the message names it and the command that gets it."""

    exit_code = EXIT_ENVIRONMENT


def errors_in(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that must stop the run."""
    return [finding for finding in findings if finding.severity is Severity.ERROR]


def shortened(text: str, most: int = 2000) -> str:
    """`text` with at most `most` characters, so that a value of a megabyte does not fill the screen."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def one_line(text: str) -> str:
    """`text` without line breaks and control characters, so that a hostile value cannot forge output."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text.encode("utf-8", "replace").decode("utf-8"))
