"""What each API key may do: the stack file's `keys` and `teams`, matched with the names that the gateway serves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from modelfleet.infra.planning.plan import (
    JWT_PREFIX,
    AllowancePlan,
    BudgetPlan,
    GatewayPlan,
    JwtKey,
    JwtPlan,
    KeyPlan,
)
from modelfleet.infra.stack import LoadedStack, StackConfig
from modelfleet.infra.stack.keys import Allowance, Budget
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.validation import near


def key_plans(stack: LoadedStack, names: Sequence[str]) -> tuple[KeyPlan, ...]:
    """Every key of the stack file, sorted by name; `names` are those of all models and adapters."""
    config = stack.config
    plans = []
    for name, key in sorted(config.keys.items()):
        team = config.teams[key.team] if key.team else None
        plans.append(
            KeyPlan(
                name=name,
                requests_per_minute=key.requests_per_minute or config.gateway.requests_per_minute,
                tokens_per_minute=key.tokens_per_minute or config.gateway.tokens_per_minute,
                concurrent_requests=key.concurrent_requests or config.gateway.concurrent_requests,
                budget=_budget(key.budget),
                team=key.team,
                models=_names(names, [key.models, team.models if team else None]),
                ends_at=key.ends_at,
            )
        )
    return tuple(plans)


def jwt_plan(stack: LoadedStack, names: Sequence[str], keys: Sequence[JwtKey]) -> JwtPlan | None:
    """The issuer of tokens, and what its tokens may: their team's models, or all; each has the gateway's limits."""
    jwt, gateway = stack.config.jwt, stack.config.gateway
    if jwt is None:
        return None
    teams = sorted(stack.config.teams) if jwt.team_claim else [None]
    entries = tuple(
        KeyPlan(
            name=f"{JWT_PREFIX}{team or ''}" + (f":{one}" if one else ""),
            requests_per_minute=gateway.requests_per_minute,
            tokens_per_minute=gateway.tokens_per_minute,
            concurrent_requests=gateway.concurrent_requests,
            team=team,
            models=_names(names, [stack.config.teams[team].models if team else None, jwt.models.get(one or "")]),
        )
        for team in teams
        for one in jwt.models or [None]
    )
    return JwtPlan(
        jwt.issuer,
        jwt.audience,
        jwt.name_claim,
        jwt.team_claim,
        tuple(keys),
        tuple(one for one in entries if one.models != ()),
        jwks=jwt.jwks if jwt.asks_issuer else None,
        models_claim=jwt.models_claim,
        lists=tuple(jwt.models),
    )


def jwt_findings(stack: LoadedStack) -> list[Finding]:
    """Tokens where nobody shows any, and a team's claim without teams."""
    config = stack.config
    if config.jwt is None:
        return []
    findings = []
    if config.auth == "none":
        findings.append(stack.finding(("jwt",), "is set, but auth is none, so nobody shows a token; leave auth out"))
    if config.jwt.team_claim and not config.teams:
        message = f"found {config.jwt.team_claim}, and no team is in modelfleet:teams; add them, or leave it out"
        findings.append(stack.finding(("jwt", "teamClaim"), message))
    return findings


def auth_findings(stack: LoadedStack) -> list[Finding]:
    """With auth `jwt`: no issuer, and API keys, of which none opens anything."""
    found = []
    if stack.config.jwt is None:
        found.append(stack.finding(("auth",), "is jwt, and no issuer is named; add `modelfleet:jwt`"))
    given = {"keys": bool(stack.config.keys), "apiKeys": "apiKeys" in stack.secrets}
    message = "is set, but auth is jwt, so no API key opens anything; leave it out, or set `auth: keys` to take both"
    return found + [stack.finding((section,), message) for section, there in given.items() if there]


def _names(names: Sequence[str], globs: Sequence[Sequence[str] | None]) -> tuple[str, ...] | None:
    """Those that match one of each list; None where there is no list."""
    given = [one for one in globs if one is not None]
    return tuple(sorted(one for one in names if _in_all(one, given))) if given else None


def team_plans(stack: LoadedStack) -> tuple[AllowancePlan, ...]:
    """Every team of the stack file, sorted by name. A team has no limit that it does not name."""
    return tuple(
        AllowancePlan(
            name,
            team.requests_per_minute,
            team.tokens_per_minute,
            team.concurrent_requests,
            _budget(team.budget),
        )
        for name, team in sorted(stack.config.teams.items())
    )


def _budget(budget: Budget | None) -> BudgetPlan | None:
    if budget is None:
        return None
    if budget.tokens is not None:
        return BudgetPlan(budget.tokens, "tokens", budget.per)
    return BudgetPlan(round((budget.usd or 0.0) * 1_000_000), "usd", budget.per)


def with_prices(gateway: GatewayPlan, usd_per_million_tokens: Mapping[str, float | None]) -> GatewayPlan:
    """The gateway with each model's price, by its id."""
    routes = tuple(
        replace(route, usd_per_million_tokens=usd_per_million_tokens.get(route.model_id)) for route in gateway.routes
    )
    return replace(gateway, routes=routes)


def key_budget_findings(stack: LoadedStack, gateway: GatewayPlan, *, head_is_kept: bool) -> list[Finding]:
    """Budgets in USD for a key that may use a model without a price, and a warning where a new Ray head forgets."""
    unpriced = {
        name: route.model_id
        for route in gateway.routes
        if route.usd_per_million_tokens is None
        for name in route.model_ids
    }
    teams = {team.name: team for team in gateway.teams}
    findings = []
    for key in gateway.entries:
        free = sorted({model for name, model in unpriced.items() if key.models is None or name in key.models})
        own, team = key.budget, teams[key.team].budget if key.team else None
        for path, budget in ((("keys", key.name), own), (("teams", key.team or ""), team)):
            if free and budget is not None and budget.unit == "usd":
                message = f"is in USD, but the plan knows no USD per million tokens of {', '.join(free)}; use tokens"
                findings.append(stack.finding((*path, "budget"), message))
    if gateway.has_budgets and not head_is_kept:
        message = "has budgets, which begin anew when the Ray head is lost; `kubernetes.headStorage: valkey` keeps them"
        at = "keys" if any(key.budget for key in gateway.keys) else "teams"
        findings.append(stack.finding((at,), message, Severity.WARNING))
    return list(dict.fromkeys(findings))


def key_for(gateway: GatewayPlan, model_id: str, names: Iterable[str], now: float) -> str | None:
    """The first key of `names` that may use a model and lives at `now` (seconds since 1970); None if none does.

    One without a budget goes before: a used budget says nothing about the model.
    """
    plans = {plan.name: plan for plan in gateway.keys}
    for name in sorted(names, key=lambda name: name in plans and plans[name].budget is not None):
        plan = plans.get(name)
        if plan is None:  # it is in no file, so it may use everything
            return name
        if (plan.models is None or model_id in plan.models) and (plan.ends_at is None or plan.ends_at > now):
            return name
    return None


def key_findings(stack: LoadedStack, names: Sequence[str]) -> list[Finding]:
    """Unknown teams, globs that match nothing, keys that may use nothing or have no secret, and keys with auth none."""
    config = stack.config
    findings = [
        *jwt_findings(stack),
        *_unknown_teams(stack),
        *(one for path, globs in _globs(config) for one in _unmatched(stack, path, globs, names)),
    ]
    if config.auth == "none":
        return findings + [
            stack.finding((section,), "is set, but auth is none, so nobody shows a key; leave `modelfleet:auth` out")
            for section, given in (("keys", config.keys), ("teams", config.teams))
            if given
        ]
    if not findings:
        findings += [
            stack.finding(("keys", plan.name, "models"), f"and those of team {plan.team} have no model in common")
            for plan in key_plans(stack, names)
            if plan.models == ()
        ]
        findings += _unused_lists(stack, names)
    return findings + (_without_secret(stack) if config.auth == "keys" else [])


def _unused_lists(stack: LoadedStack, names: Sequence[str]) -> list[Finding]:
    jwt = jwt_plan(stack, names, ())
    return [
        stack.finding(("jwt", "models", name), "and those of each team have no model in common")
        for name in (jwt.lists if jwt else ())
        if jwt and not any(entry.name.endswith(f":{name}") for entry in jwt.entries)
    ]


def _unknown_teams(stack: LoadedStack) -> list[Finding]:
    """A wrong name would take a key out of its team's limits."""
    config = stack.config
    return [
        stack.finding(
            ("keys", name, "team"), f"found {key.team}; {near(key.team, config.teams)}, or add it to modelfleet:teams"
        )
        for name, key in config.keys.items()
        if key.team is not None and key.team not in config.teams
    ]


def _without_secret(stack: LoadedStack) -> list[Finding]:
    """Only a warning: `key add` may come later, and a revoked key may come back."""
    # Without apiKeys the program gives them, or there is a Secret that this never sees; `planner` warns of it once.
    if stack.key_names is None or "apiKeys" not in stack.secrets:
        return []
    return [
        stack.finding(
            ("keys", name),
            f"has no secret, so nobody can use it; run `modelfleet key add {name} --stack {stack.name}`",
            Severity.WARNING,
        )
        for name in sorted(stack.config.keys.keys() - stack.key_names)
    ]


def _globs(config: StackConfig) -> Iterator[tuple[tuple[str, ...], Sequence[str]]]:
    """Every list of models in the sections for keys, with its place in the file."""
    sections: dict[str, Mapping[str, Allowance]] = {"keys": config.keys, "teams": config.teams}
    for section, given in sections.items():
        for name, one in given.items():
            yield (section, name, "models"), one.models or ()
    for name, globs in (config.jwt.models if config.jwt else {}).items():
        yield ("jwt", "models", name), globs


def _unmatched(stack: LoadedStack, path: tuple[str, ...], globs: Sequence[str], names: Sequence[str]) -> list[Finding]:
    return [
        stack.finding((*path, index), f"found {glob!r}, which matches no model; {near(glob, names)}")
        for index, glob in enumerate(globs)
        if not any(fnmatchcase(one, glob) for one in names)
    ]


def _in_all(name: str, globs: Sequence[Sequence[str]]) -> bool:
    return all(any(fnmatchcase(name, glob) for glob in one) for one in globs)
