"""The aws stand-in as a whole: every module of `resources/` adds its tables."""

# ruff: noqa: D102 - the methods are described in modelfleet.infra.provider.Plugin

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from modelfleet.infra.provider import InvokeDef, Plugin, Props, ResourceDef
from tools.standin.aws import resources
from tools.standin.aws.session import Aws, emulator_has_ended, explain, open_session


def _modules() -> Iterable[ModuleType]:
    for entry in pkgutil.iter_modules(resources.__path__):
        if not entry.name.startswith("_"):
            yield importlib.import_module(f"{resources.__name__}.{entry.name}")


def all_resources() -> dict[str, ResourceDef[Aws]]:
    """Every resource type of the modules under `resources/`; raises `ValueError` if one is defined twice."""
    found: dict[str, ResourceDef[Aws]] = {}
    for module in _modules():
        for definition in getattr(module, "RESOURCES", ()):
            if definition.token in found:
                raise ValueError(f"{definition.token} is defined twice; the second definition is in {module.__name__}")
            found[definition.token] = definition
    return found


def all_invokes() -> dict[str, InvokeDef[Aws]]:
    """Every function of the modules under `resources/`."""
    return {function.token: function for module in _modules() for function in getattr(module, "INVOKES", ())}


class AwsStandin(Plugin[Aws]):
    """Stands in for the plugin `aws` where it cannot be downloaded."""

    name = "aws"
    called = "stand-in"
    way_out = "install the real plugin: pulumi plugin install resource aws"

    def __init__(self) -> None:
        super().__init__(all_resources(), all_invokes())
        try:
            self.version = version("pulumi-aws")
        except PackageNotFoundError:
            self.version = "0.0.0"

    def configure(self, settings: Props) -> Aws:
        return open_session(settings)

    def describe(self, session: Aws) -> str:
        where = sorted(set(session.endpoints.values())) or ["AWS_ENDPOINT_URL"]
        return f"stand-in for pulumi-resource-aws (emulator at {', '.join(where)}; no real account is touched)"

    def explain(self, error: Exception) -> str:
        return explain(error)

    def is_gone(self, session: Aws, error: Exception) -> bool:
        # `Aws.endpoint` allows only loopback, so a refused connection is the emulator's.
        return emulator_has_ended(error)
