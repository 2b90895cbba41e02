"""Map files: everything that names models is data next to the configuration, one line per entry."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from modelfleet.infra.gateway.answers import model_card
from modelfleet.infra.planning.gateway_paths import RESERVED
from modelfleet.infra.planning.plan import GatewayPlan, Route

#: What a map key can contain: HAProxy splits a line at the first blank, and slugs become backend names.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_routes(routes: Iterable[Route]) -> None:
    """Raise `ValueError` for a route that HAProxy could misread; `plan()` never makes one."""
    seen: dict[str, str] = {}
    for route in routes:
        if not SLUG.fullmatch(route.slug):
            raise ValueError(f"found the slug {route.slug!r}; allowed are letters, digits, `.`, `_`, `-`")
        if route.slug in RESERVED:
            raise ValueError(f"the slug {route.slug!r} is a path of the gateway itself; give the model another id")
        for name in dict.fromkeys((route.model_id, *route.model_ids)):
            if not MODEL_NAME.fullmatch(name):
                raise ValueError(f"found the model id {name!r}; allowed are letters, digits, `.`, `_`, `/`, `-`")
            if name in seen:
                raise ValueError(f"the model id {name!r} is served by {seen[name]} and by {route.slug}")
            seen[name] = route.slug


def names_of(route: Route) -> list[str]:
    """The model's id first, then its other names (LoRA adapters)."""
    return list(dict.fromkeys((route.model_id, *route.model_ids)))


def models_map(gateway: GatewayPlan) -> str:
    """`<name in the body's model> <slug>`."""
    return "".join(sorted(f"{name} {route.slug}\n" for route in gateway.routes for name in names_of(route)))


def slugs_map(gateway: GatewayPlan) -> str:
    """`<first segment of the path> <slug>`."""
    return "".join(sorted(f"{route.slug} {route.slug}\n" for route in gateway.routes))


def answers_map(gateway: GatewayPlan) -> str:
    """`<slug> <most tokens of an answer whose request sets no limit>`."""
    return "".join(sorted(f"{route.slug} {route.answer_tokens}\n" for route in gateway.routes))


def homes_map(gateway: GatewayPlan) -> str:
    """`<slug> <most open requests of one replica, in percent of the mean>` of models with `prefix_cache_affinity`."""
    return "".join(
        sorted(f"{route.slug} {route.hash_balance_factor}\n" for route in gateway.routes if route.hash_balance_factor)
    )


def cards_map(gateway: GatewayPlan) -> str:
    """`<path below /v1/models> <JSON>`, also with `--` for `/`, and `*` for the whole list."""
    cards: dict[str, str] = {}
    listed = []
    for route in gateway.routes:
        for name in names_of(route):
            parent = None if name == route.model_id else route.model_id
            card = model_card(name, route, parent)
            listed.append(card)
            text = json.dumps(card, separators=(",", ":"), ensure_ascii=True)
            cards[name] = text
            cards.setdefault(name.replace("/", "--"), text)
    cards["*"] = json.dumps({"object": "list", "data": listed}, separators=(",", ":"), ensure_ascii=True)
    return "".join(f"{path} {text}\n" for path, text in sorted(cards.items()))
