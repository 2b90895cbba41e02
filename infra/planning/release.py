"""How a new release of the serving code reaches live models: which of them, in which order, how many at once.

Every application names the code zip, so a release changes all of them. They take it in an order, a few at a time; the
first that does not become ready gets its old configuration back, and the rest keep theirs. `infra/rolling.py` does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelfleet.infra.planning.plan import ModelPlan, Plan, ReleasePlan

#: One entry of Ray Serve's `applications`.
Config = Mapping[str, Any]
#: What starts an application's replicas anew (Ray Serve 2.60 `get_app_code_version`); the rest changes in place.
STARTS_ANEW = ("import_path", "runtime_env", "args")
CODE = ("import_path", "runtime_env")


@dataclass(frozen=True)
class Moves:
    """What a release does to the applications that run: `to_move` in order; `moved` have the wanted one already."""

    moved: tuple[str, ...]
    to_move: tuple[str, ...]


def release_plan(models: Iterable[ModelPlan], at_once: int) -> ReleasePlan:
    """The order: models without a gap first, then the shortest gap, so that a bad release costs the least."""
    ordered = sorted(models, key=lambda model: (model.gap.minutes, model.model_id))
    return ReleasePlan(at_once, tuple(model.slug for model in ordered))


def moves(live: Mapping[str, Config], wanted: Sequence[Config]) -> Moves:
    """Which of the `live` applications take what is `wanted`, in its order; nothing where no code changes.

    Edits of model files alone are no release: nobody's new code is in doubt, and each is its author's.
    """
    there = [one for one in wanted if one["name"] in live]
    to_move = [one for one in there if _differs(live[one["name"]], one, STARTS_ANEW)]
    if not any(_differs(live[one["name"]], one, CODE) for one in to_move):
        return Moves((), ())
    names = tuple(one["name"] for one in to_move)
    return Moves(tuple(one["name"] for one in there if one["name"] not in names), names)


def _differs(live: Config, wanted: Config, keys: Sequence[str]) -> bool:
    return any(live.get(key) != wanted.get(key) for key in keys)


def wanted_configs(plan: Plan) -> list[dict[str, Any]]:
    """Every application as the plan wants it, in the order of a release."""
    by_slug = {model.slug: model.application.as_config() for model in plan.models}
    return [by_slug[slug] for slug in plan.release.order]


def release_notice(live: Mapping[str, Config], plan: Plan) -> str | None:
    """For a preview: which live models take new code, in which order; None where no code changes."""
    found = moves(live, wanted_configs(plan))
    if not found.to_move:
        return None
    at_once = plan.release.at_once
    how = "one at a time" if at_once == 1 else f"{at_once} at a time"
    return (
        f"the serving code changes: models take it {how}, in this order: {', '.join(found.to_move)}. The first that "
        "does not become ready gets its old code back, and those after it keep theirs"
    )
