"""What moto lacks, answered by us over the same HTTP: parts of EKS, Auto Scaling groups, Pod Identity, CodeBuild."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.cloud.answers import Answer
from tools.cloud.backends.codebuild import CodeBuild
from tools.cloud.backends.eks import Eks
from tools.cloud.backends.pod_identity import PodIdentity
from tools.cloud.backends.scaling import Scaling
from tools.cloud.callers import Callers
from tools.cloud.rules import Rules
from tools.cloud.wire import Call


class Backends:
    """All backends of one cloud, with their state."""

    def __init__(self, callers: Callers, rules: Rules) -> None:
        self.eks = Eks()
        self.scaling = Scaling(rules)
        self.pod_identity = PodIdentity(self.eks, callers)
        self.codebuild = CodeBuild(callers)

    def answer(self, call: Call, url: str) -> Answer | None:
        """The answer to a call that is ours; None if it is moto's. Raises `Error` as AWS refuses.

        `url` is where this cloud listens.
        """
        if call.service == "codebuild":
            return self.codebuild.answer(call, url)
        if call.service == "eks":
            return self.eks.answer(call)
        if call.service == "eks-auth":
            return self.pod_identity.answer(call)
        if call.service == "autoscaling":
            return self.scaling.answer(call)
        return None

    def values(self, call: Call) -> Mapping[str, Any]:
        """What the ARN of a call's resource needs beyond its parameters."""
        if call.service == "codebuild":
            return self.codebuild.values(call)
        return self.eks.values(call) if call.service == "eks" else {}

    def context(self, call: Call) -> dict[str, str]:
        """Condition keys of what a call names: tags of resources that moto does not have."""
        return self.scaling.context(call) if call.service == "autoscaling" else {}

    def forget(self) -> None:
        """Loses everything, as moto does when it is reset."""
        self.eks.forget()
        self.codebuild.forget()
        self.scaling.forget()
