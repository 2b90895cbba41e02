"""`modelfleet manifests`: what `up` would apply, for a team's own policy gates; needs no cluster or credentials.

    modelfleet manifests --stack prod --out rendered

writes `rendered/kubernetes/<kind>-<name>.yaml` and, for target eks, `rendered/iam/<role>-<what>.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table

from modelfleet.cli import output
from modelfleet.infra.kubernetes.manifests import Manifest
from modelfleet.infra.kubernetes.manifests.everything import with_secrets
from modelfleet.infra.planning import Plan
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.infra.stack import load_stack
from modelfleet.serving.config.errors import Finding, InputErrors

Row = dict[str, str | None]


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes texts of several lines as blocks, and no anchors, which some tools cannot read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def run_manifests(stack: str, *, out: Path | None = None, as_json: bool = False) -> int:
    """Write the objects to `out`, or print them as one stream; returns the exit code."""
    root = Path.cwd()
    loaded = load_stack(root, stack)
    if loaded.config.target.on_this_machine:
        message = "found local, which makes no Kubernetes objects; allowed here: eks, kubernetes"
        raise InputErrors([loaded.finding(("target",), message)])
    plan = make_plan(root, stack, deploying=False, ask_issuer=True)
    output.show_findings(plan.notices)
    cluster_name, documents = _aws(plan)
    manifests = with_secrets(plan, secrets=loaded.secrets, cluster_name=cluster_name)
    if out is not None:
        _write(out, manifests, documents)
    rows = _rows(manifests, documents if out is not None else {}, out)
    if as_json:
        output.show_json({"stack": stack, "objects": rows})
    elif out is None:
        output.write("---\n".join(map(as_yaml, manifests)).rstrip("\n"))
    else:
        output.show(_table(stack, rows))
    said = f"{len(manifests)} objects" + (f" and {len(documents)} IAM documents" if documents else "")
    following = f". Next: modelfleet up --stack {stack}" if out else "; --out DIR writes them to files"
    output.say(f"{stack}: {said}{following}")
    return 0


def as_yaml(manifest: Manifest) -> str:
    """One object as a YAML document that ends with a line break."""
    text: str = yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return text


def file_name(manifest: Manifest) -> str:
    """`deployment-gateway.yaml`; no two objects of a stack have the same kind and name."""
    return f"{manifest['kind'].lower()}-{manifest['metadata']['name'].replace(':', '-')}.yaml"


def _aws(plan: Plan) -> tuple[str, Mapping[str, Any]]:
    """The cluster's name and the IAM documents; nothing for an existing cluster."""
    if not plan.target.makes_cluster:
        return "", {}
    from modelfleet.infra.aws.documents import iam_documents, site_without_account

    site = site_without_account(plan)
    return site.cluster_name, iam_documents(plan, site)


def _write(out: Path, manifests: list[Manifest], documents: Mapping[str, Any]) -> None:
    """Raises `InputErrors` for a folder that is not empty: no object that the stack no longer makes may stay in it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputErrors([Finding(str(out), 0, "--out", "is not an empty folder; give a new one, or empty it first")])
    (out / "kubernetes").mkdir(parents=True)
    for manifest in manifests:
        with (out / "kubernetes" / file_name(manifest)).open("x", encoding="utf-8") as file:
            file.write(as_yaml(manifest))
    if documents:
        (out / "iam").mkdir()
    for name, document in documents.items():
        (out / "iam" / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _rows(manifests: list[Manifest], documents: Mapping[str, Any], out: Path | None) -> list[Row]:
    objects: list[Row] = [
        {
            "kind": manifest["kind"],
            "namespace": manifest["metadata"].get("namespace"),
            "name": manifest["metadata"]["name"],
            "file": str(out / "kubernetes" / file_name(manifest)) if out else None,
        }
        for manifest in manifests
    ]
    iam: list[Row] = [
        {"kind": "IAM document", "namespace": None, "name": name, "file": str(out / "iam" / f"{name}.json")}
        for name in documents
        if out
    ]
    return objects + iam


def _table(stack: str, rows: list[Row]) -> Table:
    table = Table(title=f"Stack {stack}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    columns = ("kind", "namespace", "name")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(row[column] or "" for column in columns))
    return table
