"""What a model's licence limits, as far as a notice needs it. No legal advice."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from modelfleet.serving.config.catalogs import csv_rows


@cache
def _limits() -> Mapping[str, str]:
    return {row["contains"]: row["limits"] for row in csv_rows(Path(__file__).parent / "licences.csv")}


def licence_limit(licence: str) -> str | None:
    """What a licence of that name limits; None where nothing is known to be."""
    name = licence.lower()
    return next((limits for words, limits in _limits().items() if words in name), None)
