"""`modelfleet images`: every image that a stack's pods run, for copies behind a firewall; needs no cluster.

modelfleet images --stack prod --json | jq -r '.images[].image'
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from modelfleet.cli import output
from modelfleet.infra.kubernetes.manifests.everything import everything
from modelfleet.infra.planning import Plan
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.infra.stack import load_stack
from modelfleet.serving.config.errors import InputErrors

Row = dict[str, Any]


def run_images(stack: str, *, as_json: bool = False) -> int:
    """Print the images; returns the exit code."""
    root = Path.cwd()
    loaded = load_stack(root, stack)
    if loaded.config.target.on_this_machine:
        message = "found local, which runs processes and no images; allowed here: eks, kubernetes"
        raise InputErrors([loaded.finding(("target",), message)])
    plan = make_plan(root, stack, deploying=False)
    rows = image_rows(plan)
    if as_json:
        output.show_json({"stack": stack, "images": rows})
    else:
        output.show(_table(stack, rows))
    unpinned = sum(not row["pinned"] for row in rows)
    said = f"; {unpinned} by tag alone" if unpinned else ""
    output.say(f"{stack}: {len(rows)} images{said}. EKS's own add-ons come from AWS's registry in the region")
    return 0


def image_rows(plan: Plan) -> list[Row]:
    """Each image with what runs it. `pinned`: its name has a digest, or the stack makes it and pins what it made."""
    users: dict[str, list[str]] = {}
    for manifest in everything(plan):
        for image in _images(manifest):
            used = users.setdefault(image, [])
            used.append(f"{manifest['kind']}/{manifest['metadata']['name']}")
    made = {name for name, own in ((plan.ray_cluster.image, plan.image), (plan.copies.image, plan.mirror_image)) if own}
    rows = [_row(image, sorted(set(used)), made=image in made) for image, used in sorted(users.items())]
    bases = [_row(image.base, [f"the build of {image.dockerfile}"], made=False) for image in plan.images]
    return [*rows, *bases]


def _row(image: str, used: list[str], *, made: bool) -> Row:
    return {"image": image, "pinned": made or "@sha256:" in image, "made": made, "used_by": used}


def _images(part: Any) -> Iterator[str]:
    """The images of all containers in a manifest."""
    if isinstance(part, dict):
        for key, one in part.items():
            if key == "image" and isinstance(one, str):
                yield one
            yield from _images(one)
    elif isinstance(part, list):
        for one in part:
            yield from _images(one)


def _table(stack: str, rows: list[Row]) -> Table:
    table = Table(title=f"Images of stack {stack}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("image", "pinned", "used by"):
        table.add_column(column, overflow="fold")
    for row in rows:
        pinned = "made by the stack" if row["made"] else "yes" if row["pinned"] else "by tag"
        table.add_row(row["image"], pinned, ", ".join(row["used_by"]))
    return table
