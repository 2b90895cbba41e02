"""What a change of inputs means: nothing, an update in place, or a replacement, path by path."""

from __future__ import annotations

import re
from typing import Any

from modelfleet.infra.provider.resource import ResourceDef
from modelfleet.infra.provider.sdk import proto
from modelfleet.infra.provider.values import Props, differences

_KIND = {
    ("add", False): proto.PropertyDiff.ADD,
    ("add", True): proto.PropertyDiff.ADD_REPLACE,
    ("delete", False): proto.PropertyDiff.DELETE,
    ("delete", True): proto.PropertyDiff.DELETE_REPLACE,
    ("update", False): proto.PropertyDiff.UPDATE,
    ("update", True): proto.PropertyDiff.UPDATE_REPLACE,
}


def diff_response(definition: ResourceDef[Any], old: Props, new: Props) -> Any:
    """The engine's DiffResponse for the last deployment's inputs against the program's."""
    changed = [
        (path, what)
        for key in sorted({*old, *new} - {"__defaults"})
        if not _same(definition, key, old, new)
        for path, what in differences({key: old[key]} if key in old else {}, {key: new[key]} if key in new else {})
    ]
    in_place = definition.update is not None
    replaced = [path for path, _ in changed if not in_place or replaces(definition, path)]
    return proto.DiffResponse(
        changes=proto.DiffResponse.DIFF_SOME if changed else proto.DiffResponse.DIFF_NONE,
        replaces=sorted({_top(path) for path in replaced}),
        diffs=sorted({_top(path) for path, _ in changed}),
        deleteBeforeReplace=bool(replaced) and _delete_first(definition, old, new),
        hasDetailedDiff=True,
        detailedDiff={
            path: proto.PropertyDiff(kind=_KIND[what, path in replaced], inputDiff=True) for path, what in changed
        },
    )


def replaces(definition: ResourceDef[Any], path: str) -> bool:
    """Whether a change at `path` is force-new: the list names the path itself, a part of it or what holds it."""
    bare = re.sub(r"\[\d+\]", "", path)
    return any(
        bare == key or bare.startswith((key + ".", key + "[")) or key.startswith(bare + ".")
        for key in definition.force_new
    )


def _same(definition: ResourceDef[Any], key: str, old: Props, new: Props) -> bool:
    before, after = old.get(key), new.get(key)
    if before is None and after is None:
        return True
    own = definition.same.get(key)
    return before == after if own is None or before is None or after is None else own(before, after)


def _delete_first(definition: ResourceDef[Any], old: Props, new: Props) -> bool:
    """Whether the old resource goes first: a fixed name that stays would collide with its successor's."""
    if definition.delete_before_replace:
        return True
    auto = definition.autoname
    return auto is not None and auto.key in new and old.get(auto.key) == new[auto.key]


def _top(path: str) -> str:
    return re.split(r"[.\[]", path, maxsplit=1)[0]
