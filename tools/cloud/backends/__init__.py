"""What moto lacks, answered by us over the same HTTP: of EKS, Auto Scaling, Managed Prometheus and other services."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.cloud import groups
from tools.cloud.answers import Answer
from tools.cloud.backends import ec2, elasticache, firewall, quotas, topics
from tools.cloud.backends.codebuild import CodeBuild
from tools.cloud.backends.eks import Eks
from tools.cloud.backends.pod_identity import PodIdentity
from tools.cloud.backends.prometheus import Prometheus
from tools.cloud.backends.scaling import Scaling
from tools.cloud.callers import Callers
from tools.cloud.rules import Rules
from tools.cloud.wire import Call


class Backends:
    """All backends of one cloud, with their state."""

    def __init__(self, callers: Callers, rules: Rules) -> None:
        self._rules = rules
        self.scaling = Scaling(rules)
        self.eks = Eks(self.scaling)
        self.pod_identity = PodIdentity(self.eks, callers)
        self.codebuild = CodeBuild(callers)
        self.prometheus = Prometheus(self.eks)

    def answer(self, call: Call, url: str) -> Answer | None:
        """The answer to a call that is ours; None if it is moto's. Raises `Error` as AWS refuses.

        `url` is where this cloud listens.
        """
        if call.service == "codebuild":
            return self.codebuild.answer(call, url)
        if call.service == "eks":
            return self.eks.answer(call, url)
        if call.service == "aps":
            return self.prometheus.answer(call)
        if call.service == "servicequotas":
            return quotas.answer(call, self._rules)
        if call.service == "eks-auth":
            return self.pod_identity.answer(call)
        if call.service == "elasticache":
            return elasticache.answer(call)
        if call.service == "autoscaling":
            return self.scaling.answer(call)
        return None

    def values(self, call: Call) -> Mapping[str, Any]:
        """What the ARNs of a call's resources need beyond its parameters; `resourceTags` are tags by ARN."""
        if call.service == "codebuild":
            return self.codebuild.values(call)
        if call.service == "eks":
            return self.eks.values(call)
        if call.service == "aps":
            return self.prometheus.values(call)
        if call.service == "sns":
            return topics.values(call)
        if call.service == "ec2":
            return ec2.values(call)
        return groups.values(call) if call.service == "autoscaling" else {}

    def after(self, call: Call) -> None:
        """What AWS does behind a call that moto has accepted."""
        if (call.service, call.operation) == ("logs", "DeleteLogGroup"):
            self.eks.log_group_deleted(call)
        if (call.service, call.operation) == ("wafv2", "AssociateWebACL"):
            firewall.associated(call)

    def forget(self) -> None:
        """Loses everything, as moto does when it is reset."""
        self._rules.quotas.clear()
        self.eks.forget()
        self.codebuild.forget()
        self.scaling.forget()
        self.prometheus.forget()
