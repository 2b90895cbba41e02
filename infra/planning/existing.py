"""What a program has already, as keys of a stack: a VPC, a bucket, a namespace, a cluster."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from modelfleet.infra.stack import Target
from modelfleet.serving.config.errors import Finding

#: Which existing things each target uses; it makes the others itself, or has no need of them.
USED_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "eks": ("vpc_id", "private_subnet_ids", "bucket"),
    "kubernetes": ("kubeconfig", "bucket", "namespace"),
    "local": (),
}


def existing_sections(known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sections of a stack file that use what exists. The kubeconfig is not among them: a stack file has its path."""
    sections: dict[str, dict[str, Any]] = {}
    if "vpc_id" in known:
        sections.setdefault("network", {})["vpcId"] = known["vpc_id"]
    if "private_subnet_ids" in known:
        sections.setdefault("network", {})["privateSubnetIds"] = list(known["private_subnet_ids"])
    if "bucket" in known:
        sections["mirror"] = {"create": False, "bucket": known["bucket"]}
    if "namespace" in known:
        sections["kubernetes"] = {"createNamespace": False, "namespace": known["namespace"]}
    return sections


def existing_findings(where: str, target: Target, given: Collection[str]) -> Iterator[Finding]:
    """A finding for each existing thing that the target would silently leave unused."""
    used = USED_BY[target.name]
    allowed = f"target {target} uses {', '.join(used)} only" if used else f"target {target} uses nothing that exists"
    for name in given:
        if name not in used:
            targets = " and ".join(other for other, names in USED_BY.items() if name in names)
            yield Finding(where, 0, f"existing.{name}", f"is for target {targets}; {allowed}; remove it")
