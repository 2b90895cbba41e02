"""The base of every provider plugin of this project: the engine's protocol over a table of resource types.

`pulumi.provider.experimental` 3.272 lacks what a provider with diffs needs; `plugin.py` says what. The local target's
own plugin (`infra/local/provider`) and the stand-ins in `tools/standin` describe their resources with `ResourceDef`.
"""

from modelfleet.infra.provider.plugin import Plugin, PluginServicer, main
from modelfleet.infra.provider.resource import (
    Autoname,
    Call,
    InvokeDef,
    Made,
    NotDone,
    PartlyMade,
    Refused,
    ResourceDef,
    Session,
)
from modelfleet.infra.provider.serve import EngineLog, serve
from modelfleet.infra.provider.values import UNKNOWN, Props, contains_unknown

__all__ = [
    "UNKNOWN",
    "Autoname",
    "Call",
    "EngineLog",
    "InvokeDef",
    "Made",
    "NotDone",
    "PartlyMade",
    "Plugin",
    "PluginServicer",
    "Props",
    "Refused",
    "ResourceDef",
    "Session",
    "contains_unknown",
    "main",
    "serve",
]
