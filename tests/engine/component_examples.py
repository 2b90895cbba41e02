"""The programs of docs/component.md, and a project that runs one of them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.engine.aws_fleet import with_aws_command
from tests.engine.conftest import Emulator
from tests.engine.engine import PULUMI, Project, Run

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "component.md"
#: Of the account that moto emulates, as in the document.
REGION = "us-east-1"
#: The cluster has the definitions of KubeRay already: they are most of the work of a run.
PRELUDE = """\
import modelfleet.infra.kubernetes.operator

modelfleet.infra.kubernetes.operator.custom_resource_definitions = list

"""


def examples() -> dict[str, str]:
    """The programs by their headings."""
    sections = re.split(r"^## (.+)$", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]
    found = {
        heading: re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for heading, text in zip(sections[::2], sections[1::2], strict=True)
    }
    assert all(len(programs) < 2 for programs in found.values()), "a heading has one program"
    return {heading: programs[0] for heading, programs in found.items() if programs}


class ExampleProject(Project):
    """A user's own project with the model files of the document's programs, on the emulated account."""

    def __init__(self, folder: Path, emulator: Emulator, *, name: str = "own", stack: str = "test") -> None:
        plugin = {"name": "modelfleet", "path": str(PULUMI.parent)}
        super().__init__(
            folder,
            name=name,
            stack=stack,
            pulumi_yaml={"plugins": {"providers": [plugin]}},
            config={"aws:region": REGION, "aws:skipCredentialsValidation": True},
            environ={
                "AWS_ENDPOINT_URL": emulator.url,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "PATH": with_aws_command(folder),
            },
        )
        (folder / "models").mkdir(exist_ok=True)
        for path in (ROOT / "models").rglob("*SmolLM2*.yaml"):
            shutil.copyfile(path, folder / "models" / path.name)

    def example(self, heading: str, replaced: Mapping[str, str] | None = None) -> None:
        """Makes the program under a heading this project's own; `replaced` has texts that a test spoils in it."""
        text = examples()[heading]
        for old, new in (replaced or {}).items():
            assert old in text
            text = text.replace(old, new)
        self.program(text, prelude=PRELUDE)


def would_make(run: Run) -> dict[str, list[dict[str, Any]]]:
    """The inputs of all resources that a preview would create, by type."""
    found: dict[str, list[dict[str, Any]]] = {}
    for event in run.events:
        meta = event.get("resourcePreEvent", {}).get("metadata", {})
        if meta.get("op") == "create":
            found.setdefault(meta["type"], []).append(meta["new"].get("inputs") or {})
    return found


def shown_outputs(run: Run) -> dict[str, Any]:
    """The stack's outputs at the end of a preview, as the user sees them; what is not known yet is left out."""
    for event in reversed(run.events):
        meta = event.get("resOutputsEvent", {}).get("metadata", {})
        if meta.get("type") == "pulumi:pulumi:Stack":
            return dict(meta["new"]["outputs"])
    return {}
