"""What another version of modelfleet would make of the same files: pure functions over what both versions print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from modelfleet.infra.planning.release import STARTS_ANEW

#: What one version says about a stack: `plan --json`, and the objects of `manifests --out` by file name (empty for a
#: local stack, which has none).
Planned = Mapping[str, Any]
Objects = Mapping[str, Any]

#: Keys of the plan that differ in every version and decide nothing.
_ASIDE = frozenset({"code", "serve_config", "notices"})


@dataclass(frozen=True, order=True)
class Difference:
    """One value of the plan: where, and what both versions say (None: it is not there)."""

    where: str
    before: Any
    after: Any


@dataclass(frozen=True)
class StackDifference:
    """What changes about one stack, and what that does to what runs."""

    stack: str
    plan: tuple[Difference, ...]
    objects: tuple[str, ...]
    """Kubernetes objects and IAM documents that are new, gone or changed, by file name with `+`, `-` or `~`."""
    restarted: tuple[str, ...]
    """Serve applications, one a model, whose replicas Serve replaces; where the code changes, in this order."""
    rebuilt: bool
    """KubeRay builds a second Ray cluster beside the one that runs, which needs its nodes twice for a while."""

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def compare(stack: str, before: tuple[Planned, Objects], after: tuple[Planned, Objects]) -> StackDifference:
    """What changes from one version to another."""
    (old_plan, old_objects), (new_plan, new_objects) = before, after
    old_ray, new_ray = _ray_service(old_objects), _ray_service(new_objects)
    return StackDifference(
        stack,
        tuple(sorted(_plan_differences(old_plan, new_plan), key=lambda one: one.where)),
        tuple(_object_differences(old_objects, new_objects)),
        tuple(_restarted(old_plan, new_plan)),
        rebuilt=bool(old_ray and new_ray) and old_ray.get("rayClusterConfig") != new_ray.get("rayClusterConfig"),
    )


def _plan_differences(old: Planned, new: Planned) -> Iterator[Difference]:
    before, after = (dict(_leaves({key: plan[key] for key in plan if key not in _ASIDE})) for plan in (old, new))
    for where in sorted(before.keys() | after.keys()):
        if before.get(where) != after.get(where):
            yield Difference(where, before.get(where), after.get(where))


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its path; pools and models by name, so that a new one does not shift the others."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            name = (item.get("model_id") or item.get("name")) if isinstance(item, Mapping) else None
            yield from _leaves(item, f"{where}[{name or index}]")
    else:
        yield where, value


def _object_differences(old: Objects, new: Objects) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            yield f"+ {name}"
        elif name not in new:
            yield f"- {name}"
        elif old[name] != new[name]:
            yield f"~ {name}"


def _ray_service(objects: Objects) -> Mapping[str, Any]:
    found = [one for one in objects.values() if isinstance(one, Mapping) and one.get("kind") == "RayService"]
    return found[0]["spec"] if found else {}


def _restarted(old: Planned, new: Planned) -> Iterator[str]:
    """Serve replaces the replicas of an application when its code, environment or arguments change.

    In the order of the new version's release; earlier versions have none.
    """
    before, after = ({one["name"]: one for one in plan["serve_config"]["applications"]} for plan in (old, new))
    order = list(new.get("release", {}).get("order", []))
    for name in sorted(before.keys() & after.keys(), key=lambda one: (order.index(one) if one in order else 0, one)):
        if any(before[name].get(key) != after[name].get(key) for key in STARTS_ANEW):
            yield name
