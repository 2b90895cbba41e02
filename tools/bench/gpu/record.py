"""What was measured, one JSON object a line, written as it comes: a run that was cut goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelfleet.serving.config.errors import SetupError

Row = Mapping[str, Any]
DONE = "done"


class Record:
    """The rows in `path`. Its first row says on what they were measured; rows of two machines do not mix."""

    def __init__(self, path: Path, machine: Row) -> None:
        """Reads what is there, and `is_new` where that is nothing.

        Raises `SetupError` where it was measured on something else.
        """
        self.path = path
        self.rows: list[Row] = read(path)
        self.is_new = not self.rows
        if self.is_new:
            self.add("machine", **machine)
            return
        first = self.rows[0]
        if differ := [name for name, value in machine.items() if first.get(name) != value]:
            name = differ[0]
            raise SetupError(
                f"{path}: its rows were measured with {name} {first.get(name)!r}, and here it is {machine[name]!r}; "
                "name another file with --out, or remove this one"
            )

    def add(self, kind: str, **row: Any) -> None:
        """Writes one row, down to the disk."""
        made = {"kind": kind, **row}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(made) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.rows.append(made)

    def of(self, kind: str, step: str | None = None) -> list[Row]:
        """The rows of one kind, of one step where it is named."""
        return [row for row in self.rows if row["kind"] == kind and step in (None, row.get("step"))]

    def is_done(self, step: str) -> bool:
        """Whether a step was measured to its end."""
        return any(row["outcome"] == DONE for row in self.of("step", step))


def read(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file. A last line that was cut is dropped, from the file too."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole, _, cut = data.rpartition(b"\n")
    if cut:  # the machine went away while it was written
        with path.open("r+b") as stream:
            stream.truncate(len(data) - len(cut))
    try:
        return [json.loads(line) for line in whole.splitlines() if line]
    except ValueError:
        raise SetupError(f"{path} is not a record of this bench; name another file with --out") from None
