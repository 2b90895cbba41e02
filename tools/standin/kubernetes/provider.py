"""The kubernetes stand-in as a whole, and what it adds to the protocol: previews by dry run."""

# ruff: noqa: D102 - the methods are described in modelfleet.infra.provider.Plugin and in provider.proto

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from modelfleet.infra.provider import Plugin, PluginServicer, Props
from modelfleet.infra.provider.sdk import PropertyValue
from modelfleet.infra.provider.values import plain_map
from tools.standin.kubernetes.objects import AnyKind, dry_run
from tools.standin.kubernetes.session import Kubernetes, explain, open_session


class KubernetesStandin(Plugin[Kubernetes]):
    """Stands in for the plugin `kubernetes` where it cannot be downloaded."""

    name = "kubernetes"
    called = "stand-in"
    way_out = "install the real plugin: pulumi plugin install resource kubernetes"

    def __init__(self) -> None:
        self._kinds = AnyKind()
        super().__init__(self._kinds, {})
        try:
            self.version = version("pulumi-kubernetes")
        except PackageNotFoundError:
            self.version = "0.0.0"

    def configure(self, settings: Props) -> Kubernetes:
        self._kinds.session = open_session(settings)
        return self._kinds.session

    def describe(self, session: Kubernetes) -> str:
        return f"stand-in for pulumi-resource-kubernetes ({session.api.server}, Kubernetes {session.api.version})"

    def explain(self, error: Exception) -> str:
        return explain(error)


class KubernetesServicer(PluginServicer[Kubernetes]):
    """Has the API server validate Create and Update at preview."""

    async def Create(self, request: Any, context: Any) -> Any:
        if request.preview:
            sources = PropertyValue.unmarshal_map(request.properties)
            await self._do(context, lambda: dry_run(self._about(request), plain_map(sources)), sources)
        return await super().Create(request, context)

    async def Update(self, request: Any, context: Any) -> Any:
        if request.preview:
            sources = PropertyValue.unmarshal_map(request.news)
            await self._do(context, lambda: dry_run(self._about(request), plain_map(sources)), sources)
        return await super().Update(request, context)
