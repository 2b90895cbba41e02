"""Images that others make, from `images.csv`: which one, where it comes from, and its digest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from modelfleet.serving.config.catalogs import csv_rows

TABLE: Final = Path(__file__).with_name("images.csv")


@dataclass(frozen=True)
class OthersImage:
    """An image in its maker's registry. Without a digest the tag alone says what runs."""

    image: str
    tag: str
    digest: str


def reference(name: str, *, registry: str | None = None, tag: str | None = None) -> str:
    """The image as pods name it, by tag and, where it is known, digest.

    `registry` is where copies are, each below the name of its maker's registry. Another `tag` than the table's has no
    known digest. Raises `KeyError` for a name that the table lacks.
    """
    known = images()[name]
    wanted = tag or known.tag
    digest = f"@{known.digest}" if known.digest and wanted == known.tag else ""
    return f"{f'{registry}/' if registry else ''}{known.image}:{wanted}{digest}"


@cache
def images() -> dict[str, OthersImage]:
    """The table, by name."""
    return {row["name"]: OthersImage(row["image"], row["tag"], row["digest"]) for row in csv_rows(TABLE)}
