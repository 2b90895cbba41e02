"""`modelfleet plan --pin`: writes the chosen instance types into the stack file and keeps its comments."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from modelfleet.infra.planning import Plan
from modelfleet.infra.stack import stack_file

POOLS = "modelfleet:pools"


def pin(root: Path, plan: Plan) -> list[str]:
    """Write `instanceTypes` of every pool that leaves them open; returns a line for each pool changed."""
    path = stack_file(root, plan.stack)
    text = path.read_text("utf-8")
    yaml = round_trip(text)
    document: Any = yaml.load(text)
    written = []
    for entry, wanted, planned in zip(document["config"][POOLS], plan.config.pools, plan.pools, strict=True):
        if wanted.instance_types != "auto" or not planned.instance_types:
            continue
        entry["instanceTypes"] = _flow(planned.instance_types)
        written.append(f"{path.name}: pool {planned.name}: instanceTypes: [{', '.join(planned.instance_types)}]")
    if written:
        stream = io.StringIO()
        yaml.dump(document, stream)
        path.write_text(stream.getvalue(), "utf-8")
    return written


def _flow(names: tuple[str, ...]) -> CommentedSeq:
    sequence = CommentedSeq(names)
    sequence.fa.set_flow_style()
    return sequence


def round_trip(text: str) -> YAML:
    """A round-trip YAML that keeps the file's indentation of lists and adds no line breaks."""
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 4096
    lines = text.splitlines()
    parent = next((i for i, line in enumerate(lines) if line.strip().startswith(POOLS)), None)
    item = next((line for line in lines[(parent or 0) + 1 :] if line.lstrip().startswith("- ")), "")
    if parent is not None and item:
        base = len(lines[parent]) - len(lines[parent].lstrip())
        offset = len(item) - len(item.lstrip()) - base
        yaml.indent(mapping=base or 2, sequence=offset + 2, offset=offset)
    return yaml
