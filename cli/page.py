"""What the HTML pages share: how their templates are read, and how a page becomes a file."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from modelfleet.serving.config.errors import Finding, InputErrors

TEMPLATES = Path(__file__).parent / "templates"


def page_environment() -> Environment:
    """Jinja for pages: every value is escaped, and a name that is missing is an error."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(page: str, path: Path) -> None:
    """Raises `InputErrors` where the file cannot be written."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputErrors([Finding(str(path), 0, "", f"cannot be written: {error.strerror or error}")]) from None
