"""`python -m tests.unit.kubernetes.rewrite`: writes the reviewed manifests again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from modelfleet.infra.kubernetes.manifests import Manifest, everything
from modelfleet.infra.planning import Plan
from tests.unit.kubernetes.projects import STACKS

RENDERED = Path(__file__).parent / "rendered"


class _Dumper(yaml.SafeDumper):
    """Writes long texts as blocks, so a diff shows lines."""


def _text(dumper: yaml.SafeDumper, value: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def texts(plan: Plan, manifests: Sequence[Manifest] | None = None) -> dict[str, str]:
    """One file per kind, without what other parts own: the code's hash, the gateway's files, the scripts."""
    files: dict[str, list[Any]] = {}
    for manifest in manifests or everything(plan, keys_id="keys", cluster_name="modelfleet-prod"):
        if manifest["kind"] == "ConfigMap":
            manifest["data"] = dict.fromkeys(manifest["data"], "…")
        if manifest["kind"] == "Deployment":
            manifest["spec"]["template"]["metadata"].pop("annotations", None)
        if manifest["kind"] == "RayService":
            manifest["spec"]["serveConfigV2"] = manifest["spec"]["serveConfigV2"].replace(plan.code.sha256, "CODE")
        files.setdefault(f"{manifest['kind'].lower()}.yaml", []).append(manifest)
    return {
        name: yaml.dump_all(found, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
        for name, found in files.items()
    }


def main() -> None:
    """Write all files."""
    for stack, make in STACKS.items():
        folder = RENDERED / stack
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as root:
            for name, text in texts(make(Path(root))).items():
                (folder / name).write_text(text)


if __name__ == "__main__":
    main()
