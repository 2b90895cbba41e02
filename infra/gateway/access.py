"""What each key may do, as maps and rules: expiry, its own models, its own limits and its team's.

Keys that may use the same models are one *class*. A class sees other entries of the same maps: each of its names has
its suffix, which no name of a model can have (`:`). A key that may use all models has no class, and its requests meet
none of the rules for classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from modelfleet.infra.gateway.answers import log_format, model_card, refuses, returns
from modelfleet.infra.gateway.maps import names_of
from modelfleet.infra.planning.plan import AllowancePlan, GatewayPlan, KeyPlan, Route

#: In a key's line of `access.map`: team, class, end, requests and tokens per minute, open requests.
FIELDS = ("team", "class", "ends", "requests", "tokens", "open")
#: No name of a key or team is this: they begin with a letter or digit.
NONE = "_"
#: The key of a class's whole list in `cards.map`, and of its names as text.
LIST, NAMES = "*", "?"
#: Before a slug in `models.map`: what a body without `model` gets below `/<slug>`. No model's name begins like this.
BASE = "//"
#: By which the first process tells the second, and the replica, who asks. A client's own are dropped.
KEY_HEADER, TEAM_HEADER, CLASS_HEADER = "x-modelfleet-key", "x-modelfleet-team", "x-modelfleet-class"


def classes(gateway: GatewayPlan) -> Mapping[tuple[str, ...], str]:
    """The suffix of each different list of models."""
    lists = sorted({key.models for key in gateway.entries if key.models is not None})
    return {names: f":c{number}" for number, names in enumerate(lists, 1)}


def access_map(gateway: GatewayPlan) -> str:
    """`<key> <its fields>`."""
    suffixes = classes(gateway)
    return "".join(f"{key.name} {'|'.join(_fields(key, suffixes))}\n" for key in gateway.entries)


def _fields(key: KeyPlan, suffixes: Mapping[tuple[str, ...], str]) -> Iterable[str]:
    own = suffixes[key.models] if key.models is not None else NONE
    return (
        key.team or NONE,
        own,
        str(key.ends_at or NONE),
        *(str(one or NONE) for one in (key.requests_per_minute, key.tokens_per_minute, key.concurrent_requests)),
    )


def teams_map(gateway: GatewayPlan) -> str:
    """`<team> <requests>|<tokens>|<open>`."""
    return "".join(
        f"{team.name} {team.requests_per_minute or NONE}|{team.tokens_per_minute or NONE}|"
        f"{team.concurrent_requests or NONE}\n"
        for team in gateway.teams
    )


def class_models(gateway: GatewayPlan) -> str:
    """The lines of `models.map` for classes."""
    lines = []
    for names, suffix in classes(gateway).items():
        for route in gateway.routes:
            lines += [f"{name}{suffix} {route.slug}\n" for name in names_of(route) if name in names]
            if route.model_id in names:
                lines.append(f"{BASE}{route.slug}{suffix} {route.slug}\n")
    return "".join(sorted(lines))


def class_slugs(gateway: GatewayPlan) -> str:
    """The lines of `slugs.map` for classes: a model is there if it or one of its adapters is."""
    return "".join(
        sorted(
            f"{route.slug}{suffix} {route.slug}\n"
            for names, suffix in classes(gateway).items()
            for route in gateway.routes
            if set(names) & set(names_of(route))
        )
    )


def class_cards(gateway: GatewayPlan) -> str:
    """The lines of `cards.map` for classes: their lists, each of their models, and below `/<slug>` that one's list."""
    lines = []
    for names, suffix in classes(gateway).items():
        listed: list[dict[str, object]] = []
        for route in gateway.routes:
            cards = {name: _card(name, route) for name in names_of(route) if name in names}
            listed += cards.values()
            lines.append(f"{BASE}{route.slug}{suffix} {_list(cards.values())}\n")
            for name, card in cards.items():
                for spelled in dict.fromkeys((name, name.replace("/", "--"))):
                    lines.append(f"{spelled}{suffix} {_json(card)}\n")
        lines += [f"{LIST}{suffix} {_list(listed)}\n", f"{NAMES}{suffix} {', '.join(names)}\n"]
    return "".join(sorted(lines))


def _card(name: str, route: Route) -> dict[str, object]:
    return model_card(name, route, None if name == route.model_id else route.model_id)


def _list(cards: Iterable[dict[str, object]]) -> str:
    return _json({"object": "list", "data": list(cards)})


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)


def ends(gateway: GatewayPlan, folder: str) -> list[str]:
    """Looks up the key's fields, and refuses one that has ended: its old secret after a rotation, or the key itself."""
    own = " unless token" if gateway.jwt else ""  # a token's name may have an @
    lines = [
        f"http-request set-var(txn.old_until) var(txn.key),field(2,@){own}",
        f"http-request set-var(txn.key) var(txn.key),field(1,@){own}",
        _ended("This secret of the API key was rotated and ended at {0}. Use the new one.", "txn.old_until"),
    ]
    if not gateway.entries:
        return lines
    entry = "txn.entry" if gateway.jwt else "txn.key"
    if gateway.jwt:  # a token has set it already
        lines.append("http-request set-var(txn.entry) var(txn.key) unless { var(txn.entry) -m found }")
    lines.append(f"http-request set-var(txn.access) var({entry}),map_str({folder}/access.map)")
    for number, name in enumerate(FIELDS, 1):
        found = f"var(txn.access),field({number},|)"
        lines.append(
            f"http-request set-var(txn.{name}) {found} if {{ var(txn.access) -m found }} !{{ {found} -m str {NONE} }}"
        )
    return [*lines, _ended("This API key ended at {0}.", "txn.ends")]


def _ended(message: str, variable: str) -> str:
    when = f"%[var({variable}),utime(%Y-%m-%dT%H:%M:%SZ)]"
    body = {"error": {"message": message, "type": "AuthenticationError", "param": None, "code": 401}}
    text = log_format(json.dumps(body, separators=(",", ":"))).replace("{0}", when)
    headers = {"WWW-Authenticate": 'Bearer error="invalid_token"', "Connection": "close"}
    return (
        returns(401, text, headers=headers, dynamic=True)
        + f" if {{ var({variable}) -m int gt 0 }} {{ date(),sub({variable}) ge 0 }}"
    )


def tell_replica(gateway: GatewayPlan) -> list[str]:
    """The names that the replica counts usage under. `identity` dropped what a client sent."""
    if gateway.auth == "none":
        return []
    lines = [f"http-request set-header {KEY_HEADER} %[var(txn.key)]"]
    if gateway.teams:
        lines.append(f"http-request set-header {TEAM_HEADER} %[var(txn.team)] if {{ var(txn.team) -m found }}")
    if classes(gateway):
        lines += [
            "acl restricted var(txn.class) -m found",
            f"http-request set-header {CLASS_HEADER} %[var(txn.class)] if restricted",
        ]
    return lines


def hear_class(gateway: GatewayPlan) -> list[str]:
    """In the second process: the class that the first one said."""
    if not classes(gateway):
        return []
    return [
        f"http-request set-var(txn.class) req.fhdr({CLASS_HEADER}) if {{ req.fhdr({CLASS_HEADER}) -m found }}",
        f"http-request del-header {CLASS_HEADER}",
        "acl restricted var(txn.class) -m found",
    ]


def of_class(gateway: GatewayPlan) -> str:
    """The converter that makes a name one of the key's class."""
    return ",concat(,txn.class)" if classes(gateway) else ""


def class_listing(gateway: GatewayPlan, folder: str) -> list[str]:
    """`GET /<slug>/v1/models` for a class: the replica itself would list every adapter."""
    if not classes(gateway):
        return []
    card = f"str({BASE}),concat(,txn.slug),concat(,txn.class),map_str({folder}/cards.map)"
    answer = returns(200, f"%[{card}]", dynamic=True)
    return [f"{answer} if restricted direct_get {{ var(txn.rest) -m str /v1/models }}"]


def class_routing(gateway: GatewayPlan, folder: str) -> list[str]:
    """Reads the body's `model` again for a class, all of it: an engine may read another one than the first.

    Python's JSON takes the last of two, and below `/<slug>` a body may name any adapter of that model. A body that Lua
    does not finish names none that is granted.
    """
    if not classes(gateway):
        return []
    granted = f"concat(,txn.class),map_str({folder}/models.map)"
    return [
        "http-request unset-var(txn.model) if restricted posts",
        "http-request unset-var(txn.slug) if restricted by_model",
        "http-request lua.read_model if restricted posts",
        refuses(400, "The body names `model` more than once.", "Bad Request", param="body.model")
        + " if { var(txn.fault) -m str twice }",
        refuses(
            400,
            "The form has a field whose name, or a boundary or charset, that can be read in two ways.",
            "Bad Request",
            param="body.model",
        )
        + " if { var(txn.fault) -m str form }",
        f"http-request set-var(txn.granted) str({BASE}),concat(,txn.slug),{granted} if restricted direct missing",
        f"http-request set-var(txn.granted) var(txn.model),{granted} if restricted direct named",
        "http-request set-var(txn.model) var(txn.slug) if restricted direct missing",
    ]


def limits(gateway: GatewayPlan, folder: str) -> list[str]:
    """Finds each limit of the key and of its team; where the key has none of its own, the gateway's."""
    settings = gateway.settings
    lines = []
    shared = (settings.requests_per_minute, settings.tokens_per_minute, settings.concurrent_requests)
    for name, most in zip(FIELDS[3:], shared, strict=True):
        if most:  # a key that is in `apiKeys` but not in `keys`
            lines.append(f"http-request set-var(txn.{name}) int({most}) unless {{ var(txn.access) -m found }}")
    if gateway.teams:
        lines.append(f"http-request set-var(txn.team_limits) var(txn.team),map_str({folder}/teams.map)")
        for number, name in enumerate(FIELDS[3:], 1):
            found = f"var(txn.team_limits),field({number},|)"
            lines.append(
                f"http-request set-var(txn.team_{name}) {found} "
                f"if {{ var(txn.team_limits) -m found }} !{{ {found} -m str {NONE} }}"
            )
    return lines


def has(gateway: GatewayPlan, name: str) -> tuple[bool, bool]:
    """Whether some key, and some team, has the limit `name`."""
    field = {"requests": "requests_per_minute", "tokens": "tokens_per_minute", "open": "concurrent_requests"}[name]

    def of(many: Iterable[AllowancePlan]) -> bool:
        return any(getattr(one, field) for one in many)

    return bool(getattr(gateway.settings, field)) or of(gateway.entries), of(gateway.teams)


def over(what: str, allowed: str, retry_after_s: int, *, whose: str, variable: str, used: str) -> str:
    """429 for who has used all of a limit that is in a variable."""
    message = f"Too many {what} for this {whose}; allowed are {{0}} {allowed}."
    body = {"error": {"message": message, "type": "RateLimitError", "param": None, "code": 429}}
    text = log_format(json.dumps(body, separators=(",", ":"))).replace("{0}", f"%[var({variable})]")
    answer = returns(429, text, headers={"Retry-After": str(retry_after_s)}, dynamic=True)
    return f"{answer} if posts {{ var({variable}) -m found }} {{ {used},sub({variable}) ge 0 }}"
