"""Measurements of real cards on disk: the catalog's own, and those of a fleet's folder, beside its models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from modelfleet.infra.catalog import Catalog, Measured, default_catalog
from modelfleet.infra.catalog.measured import FILE, as_csv, measured_rows
from modelfleet.infra.planning.measured import on_measured
from modelfleet.serving.config.errors import Finding, InputErrors

NAME = "measured.csv"


def known_catalog(root: Path) -> Catalog:
    """The catalog with what was measured on cards, in `root`'s own file too. Raises `InputErrors` for a broken one."""
    catalog, own = default_catalog(), _file(root)
    if own.is_file() and own != FILE:
        try:
            rows = tuple(measured_rows(own))
        except (OSError, ValueError) as fault:
            message = f"{fault}; `modelfleet gpu check --save` writes such rows"
            raise InputErrors([Finding(NAME, 0, "", message)]) from None
        catalog = dataclasses.replace(catalog, measured=(*catalog.measured, *rows))
    return on_measured(catalog)


def save_measured(rows: Sequence[Measured], root: Path) -> Path:
    """Adds rows to the catalog's file in a checkout, else to `root`'s own; returns it. Raises `OSError`."""
    path = _file(root)
    known = path.read_text(encoding="utf-8") if path.exists() else ""
    unended = bool(known) and not known.endswith("\n")  # as an editor may leave it: the first row would join its last
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * unended + as_csv(rows, header=not known))
    return path


def _file(root: Path) -> Path:
    """An installed package's catalog is not the user's to write, and an upgrade would take the rows away."""
    return FILE if FILE.is_relative_to(root.resolve()) and "site-packages" not in FILE.parts else root / NAME
