"""`python -m tools.audit` (`make audit`): scanners that are too heavy for `make check`, to run after version upgrades.

Each scans the output of `modelfleet manifests` for the shipped stacks, or the code. Scanners from the package index run
in temporary uv environments; the others run only if they are on PATH. A line reports each one that is not available.
A Kubernetes object that its schema refuses fails the run, and a right that AWS gives on `*` alone and a document on
less; the other findings are for information.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modelfleet.infra.stack import load_stack
from tools.paths import ROOT
from tools.progress import Step, say

UV = Path(sys.executable).with_name("uv")
#: Actions that AWS gives by resource today and on `*` only in parliament's list. Looked up on 2026-11-30.
#: https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonelasticcontainerregistry.html
FINER_SINCE = frozenset({"ecr:BatchImportUpstreamImage"})
NEVER_GIVEN = "given on less than *, which AWS refuses: "
#: Finding's id → how often; the form of every tool's result.
Counts = Counter[str]


@dataclass(frozen=True)
class Tool:
    """A scanner: its command, and how its output becomes counts. `package` is its pin in the package index."""

    name: str
    command: Sequence[str]
    counts: Callable[[str], Counts]
    package: str | None = None
    fatal: str | None = None
    """How findings begin that fail the run; empty for all. With it the scanner must also have run."""
    beside: Sequence[str] = ()
    """What its package imports and does not name."""

    def words(self) -> list[str] | None:
        """The command line; None if the tool is neither installed nor in the package index."""
        if self.package is not None:
            beside = [word for name in self.beside for word in ("--with", name)]
            return [str(UV), "tool", "run", "--python", sys.executable, *beside, "--from", self.package, *self.command]
        found = shutil.which(self.command[0])
        return None if found is None else [found, *self.command[1:]]


def lines(pattern: str) -> Callable[[str], Counts]:
    """Counts what the first group of `pattern` matches, line by line."""
    return lambda text: Counter(match.group(1) for match in re.finditer(pattern, text, re.MULTILINE))


def _checkov(text: str) -> Counts:
    failed = json.loads(text)["results"]["failed_checks"]
    return Counter(f"{one['check_id']} {one['check_name']}" for one in failed)


def _kube_score(text: str) -> Counts:
    return Counter(check["check"]["name"] for one in json.loads(text) for check in one["checks"] if check["grade"] < 5)


def _trivy(text: str) -> Counts:
    results = json.loads(text).get("Results") or []
    found = [one for result in results for one in result.get("Misconfigurations") or []]
    return Counter(f"{one['Severity']} {one['ID']} {one['Title']}" for one in found)


def _parliament(text: str) -> Counts:
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return Counter(_never_given(one) or f"{one['severity']} {one['title']}" for one in found)


def _never_given(finding: dict[str, Any]) -> str | None:
    """The right that a statement names and, by its resource, never gives; None for another finding.

    What a pattern such as `s3:Get*` has beside what it is for is no such right.
    """
    if finding["issue"] != "RESOURCE_MISMATCH":
        return None
    wants = [one["action"] for one in finding["detail"] if one["required_format"] == "*"]
    text = Path(finding["location"]["filepath"]).read_text(encoding="utf-8")
    lost = sorted(action for action in wants if action not in FINER_SINCE and f'"{action}"' in text)
    return f"{NEVER_GIVEN}{', '.join(lost)}" if lost else None


def tools(objects: Path, documents: Path) -> list[Tool]:
    """All scanners, over a folder of Kubernetes objects, one of IAM documents, and over the code."""
    files = sorted(map(str, objects.glob("*.yaml")))
    python = [
        "--pythonpath",
        sys.executable,
        "--level",
        "error",
        *(str(ROOT / f) for f in ("cli", "doctor", "infra", "serving")),
    ]
    schemas = ["kubernetes-validate", "--strict", "--quiet", "--no-warn", *files]
    checkov = ["checkov", "-d", str(objects), "--framework", "kubernetes", "--compact", "--quiet", "--skip-download"]
    parliament = ["parliament", "--directory", str(documents), "--json"]
    return [
        Tool("kubernetes-validate", schemas, lines(r"^(?:ERROR|FAIL\w*) (.*)"), "kubernetes-validate==1.37.0", ""),
        Tool("checkov", [*checkov, "-o", "json"], _checkov, "checkov>=3.3,<4"),
        Tool("basedpyright", ["basedpyright", *python], lines(r"\((report\w+)\)$"), "basedpyright>=1.3,<2"),
        # Its list of actions is of 2024.
        Tool("parliament", parliament, _parliament, "parliament==1.6.4", NEVER_GIVEN, beside=["setuptools<81"]),
        Tool("kube-score", ["kube-score", "score", "-o", "json", *files], _kube_score),
        Tool("trivy", ["trivy", "config", "--quiet", "-f", "json", str(objects)], _trivy),
    ]


def write_objects(folder: Path, documents: Path) -> None:
    """Writes the objects of all shipped stacks on Kubernetes, and each Ray pod: no tool looks into a RayService.

    `documents` gets the IAM documents without those that say who is trusted: these have no resources.
    """
    for file in sorted((ROOT / "stacks").glob("Pulumi.*.yaml")):
        stack = file.name.split(".")[1]
        if load_stack(ROOT, stack).config.target.on_this_machine:
            continue
        with tempfile.TemporaryDirectory() as out:
            command = [
                sys.executable,
                "-m",
                "modelfleet.cli.main",
                "manifests",
                "--stack",
                stack,
                "--out",
                out,
                "--json",
            ]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for path in (Path(out) / "iam").glob("*.json"):
                if not path.stem.endswith("-trust"):
                    shutil.copy(path, documents / f"{stack}-{path.name}")
            for path in (Path(out) / "kubernetes").glob("*.yaml"):
                if not path.name.startswith("customresourcedefinition-"):
                    shutil.copy(path, folder / f"{stack}-{path.name}")
        service = yaml.safe_load((folder / f"{stack}-rayservice-fleet.yaml").read_text(encoding="utf-8"))
        cluster = service["spec"]["rayClusterConfig"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            name = f"ray-{group.get('groupName', 'head')}"
            metadata = {**group["template"]["metadata"], "name": name, "namespace": service["metadata"]["namespace"]}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": group["template"]["spec"]}
            (folder / f"{stack}-pod-{name}.yaml").write_text(yaml.safe_dump(pod), encoding="utf-8")


def run(tool: Tool) -> bool:
    """Run one scanner and print its counts; return False if it must pass and did not."""
    words = tool.words()
    if words is None:
        say(f"{tool.name}: not on PATH, so it did not run")
        return True
    with Step(tool.name):
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        counts = tool.counts(done.stdout)
    except (ValueError, KeyError, TypeError):
        counts = Counts()
    if done.returncode and not counts:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        say(f"{tool.name}: could not be installed or did not run: {last}")
        return tool.fatal is None
    say(f"{tool.name}: {counts.total()} findings of {len(counts)} kinds")
    for kind, count in counts.most_common():
        say(f"  {count:4} {kind}")
    return tool.fatal is None or not any(kind.startswith(tool.fatal) for kind in counts)


def main() -> int:
    """Run all scanners, one after the other; return the exit code."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-audit-") as folder:
        objects, documents = Path(folder, "objects"), Path(folder, "iam")
        objects.mkdir()
        documents.mkdir()
        write_objects(objects, documents)
        passed = [run(tool) for tool in tools(objects, documents)]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
