"""The JSON Schemas of model and stack files where a fleet's editor settings look for them: `.modelfleet/schemas`."""

from __future__ import annotations

from contextlib import suppress
from importlib import resources
from pathlib import Path

NAMES = ("model.schema.json", "stack.schema.json")


def refresh_schemas(root: Path) -> None:
    """Bring a fleet's copies to this version, so that the fleet itself holds none that could be stale."""
    if not (root / "Pulumi.yaml").is_file():
        return
    folder = root / ".modelfleet" / "schemas"
    with suppress(OSError):  # a folder that may only be read is checked all the same, and nobody edits it
        folder.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            content = resources.files("modelfleet.schemas").joinpath(name).read_bytes()
            target = folder / name
            if not target.is_file() or target.read_bytes() != content:
                target.write_bytes(content)
