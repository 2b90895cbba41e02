"""Budgets, and limits that settle: what replicas tell of a request's tokens, and what the next request meets.

A request takes along where its gateway listens for its tokens, a secret of that process, its charge at entry, and
which budgets the gateway has for its key and team (`tell`). The replica sends what the request really took, a second
after its end at most, and what key and team have used of their budgets (`modelfleet.serving.settling`) to `PATH`
beside the metrics (`hear`). Both stand in tables of their own by the name of key or team: no request is tracked
there, so that a replica's words count as nobody's requests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from modelfleet.infra.gateway.answers import log_format, returns
from modelfleet.infra.gateway.files import Runtime
from modelfleet.infra.planning.plan import AllowancePlan, GatewayPlan, Route
from modelfleet.serving import settling

#: The tables of keys and of teams, by the name of the variable that holds theirs.
TABLES = {"key": "settled", "team": "settled_teams"}
#: gpt: when the budget's period ends (seconds since 1970), then what was used of it, in millions and the rest: one
#: number has 32 bits. gpc: tokens of the last minute that a request took beyond its charge, and those that it did not.
#: Entries live for as long as HAProxy lets them, after which a replica tells the same again.
TABLE = "stick-table type string len 64 size 100k expire 24d store gpt(3),gpc(2),gpc_rate(2,60s)"
ENDS, MILLIONS, REST = 0, 1, 2
MORE, LESS = 0, 1


def names(gateway: GatewayPlan) -> list[str]:
    """`key`, and `team` where the stack has teams."""
    return ["key", *(["team"] if gateway.teams else [])]


def tables(gateway: GatewayPlan) -> list[tuple[str, str]]:
    """Names and lines of the tables."""
    return [(TABLES[name], TABLE) for name in names(gateway)] if gateway.settles else []


def budgets_map(allowances: Iterable[AllowancePlan]) -> str:
    """`<key or team> <period>-<unit>|<amount>|<in words>`, the amount in tokens or millionths of a USD."""
    lines = []
    for one in allowances:
        if one.budget is not None:
            usd, tokens = f"{one.budget.amount / settling.MILLION:,.2f} USD", f"{one.budget.amount:,} tokens"
            words = usd if one.budget.unit == "usd" else tokens
            lines.append(f"{one.name} {one.budget.per}-{one.budget.unit}|{one.budget.amount}|{words}\n")
    return "".join(lines)


def maps(gateway: GatewayPlan) -> dict[str, str]:
    """The map of each kind of name, by its file's name; none without a budget."""
    if not gateway.has_budgets:
        return {}
    found = {_file("key"): budgets_map(gateway.keys)}
    return {**found, _file("team"): budgets_map(gateway.teams)} if gateway.teams else found


def _file(name: str) -> str:
    return f"{name}-budgets.map"


def spent(gateway: GatewayPlan, folder: str) -> list[str]:
    """429 for who has used a budget; the answer says when the next one begins."""
    if not gateway.has_budgets:
        return []
    lines = ["http-request set-var(txn.now) date()"]
    for name in names(gateway):
        budget, own, table = f"txn.{name}_budget", f"var(txn.{name})", TABLES[name]
        lines += [
            f"http-request set-var({budget}) {own},map_str({folder}/{_file(name)})",
            f"http-request set-var({budget}_kind) var({budget}),field(1,|) if {{ var({budget}) -m found }}",
            f"http-request set-var({budget}_most) var({budget}),field(2,|) if {{ var({budget}) -m found }}",
            f"http-request set-var({budget}_ends) {own},table_gpt({ENDS},{table}) if {{ var({budget}) -m found }}",
            f"http-request set-var({budget}_rest) {own},table_gpt({REST},{table}) if {{ var({budget}) -m found }}",
            (
                f"http-request set-var({budget}_used) {own},table_gpt({MILLIONS},{table}),mul({settling.MILLION}),"
                f"add({budget}_rest) if {{ var({budget}) -m found }}"
            ),
            _over("API key" if name == "key" else "API key's team", budget),
        ]
    return lines


def _over(whose: str, budget: str) -> str:
    """OpenAI's error for a quota that is used up."""
    message = f"This {whose} has used its budget of {{amount}} for this {{period}}; the next one begins at {{ends}}."
    body = {"message": message, "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}
    text = log_format(json.dumps({"error": body}, separators=(",", ":")))
    for word, fetched in {
        "{amount}": f"%[var({budget}),field(3,|)]",
        "{period}": f"%[var({budget}_kind),field(1,-)]",
        "{ends}": f"%[var({budget}_ends),utime(%Y-%m-%dT%H:%M:%SZ)]",
    }.items():
        text = text.replace(word, fetched)
    answer = returns(429, text, headers={"Retry-After": f"%[var({budget}_ends),sub(txn.now)]"}, dynamic=True)
    return (
        f"{answer} if posts {{ var({budget}_ends),sub(txn.now) gt 0 }} {{ var({budget}_used),sub({budget}_most) ge 0 }}"
    )


def used(gateway: GatewayPlan) -> tuple[list[str], str]:
    """Rules, and the fetch of what counts against tokens per minute: the charges, corrected by what requests took."""
    if not gateway.settles:
        return [], "sc_gpc_rate(1,{0})"
    lines = []
    for number, name in enumerate(names(gateway)):
        for counter, word in ((MORE, "more"), (LESS, "less")):
            rate = f"table_gpc_rate({counter},{TABLES[name]})"
            lines.append(f"http-request set-var(txn.{word}{number}) var(txn.{name}),{rate}")
    return lines, "sc_gpc_rate(1,{0}),add(txn.more{0}),sub(txn.less{0})"


def tell(gateway: GatewayPlan, runtime: Runtime) -> list[str]:
    """Says to the replica where its gateway listens, and which budgets the key and its team have (`-` for none)."""
    if not gateway.settles:
        return []
    lines = []
    kinds = []
    for name in ("key", "team"):
        variable = f"txn.{name}_budget_kind"
        kinds.append(f"%[var({variable})]")
        lines.append(f"http-request set-var({variable}) str(-) unless {{ var({variable}) -m found }}")
    value = f'"{runtime.settle_address} %[lua.settle_secret] {" ".join(kinds)}"'
    return [*lines, f"http-request set-header {settling.SETTLE} {value}"]


def charged(gateway: GatewayPlan) -> list[str]:
    """Says to the replica what the request was charged at entry; to the second process also the part for answers."""
    if not gateway.settles:
        return []
    return [
        f"http-request set-header {settling.CHARGE} %[var(txn.charge)] if {{ var(txn.charge) -m found }}",
        f"http-request set-header {ASKED} %[var(txn.answers)] if {{ var(txn.answers) -m found }}",
    ]


#: By which the first process tells the second how many tokens of answers it saw and charged.
ASKED = "x-modelfleet-asked"


def charged_unseen(gateway: GatewayPlan) -> list[str]:
    """In the second process: the same with what only it has read, for which its answer's head charges."""
    if not gateway.settles:
        return []
    return [
        f"http-request set-var(txn.unseen) req.fhdr({ASKED}),neg,add(txn.answers) if {{ req.fhdr({ASKED}) -m found }}",
        (
            f"http-request set-var(txn.whole) req.fhdr({settling.CHARGE}),add(txn.unseen)"
            " if { var(txn.unseen) -m int gt 0 }"
        ),
        f"http-request set-header {settling.CHARGE} %[var(txn.whole)] if {{ var(txn.whole) -m found }}",
        f"http-request del-header {ASKED}",
    ]


def price(route: Route) -> list[str]:
    """Says to the replica what a million output tokens of its model cost, where a budget is in USD."""
    if route.usd_per_million_tokens is None:
        return []
    return [f"http-request set-header {settling.PRICE} {route.usd_per_million_tokens:.6f}"]


def in_usd(gateway: GatewayPlan) -> bool:
    """Whether any budget is."""
    return any(one.budget is not None and one.budget.unit == "usd" for one in (*gateway.keys, *gateway.teams))


def hear(gateway: GatewayPlan) -> list[str]:
    """Beside the metrics: takes what replicas tell, of those that know this process's secret."""
    if not gateway.settles:
        return []
    lines = [
        f"acl settles path {settling.PATH}",
        "http-request set-var(txn.secret) lua.settle_secret if settles",
        (
            "http-request return status 403 if settles"
            f" !{{ req.fhdr({settling.SECRET}),secure_memcmp(txn.secret) -m bool true }}"
        ),
    ]
    for number, name in enumerate(names(gateway)):
        said = f"req.fhdr(x-modelfleet-{name})"
        lines.append(f"http-request track-sc{number} {said} table {TABLES[name]} if settles {{ {said} -m found }}")
        there = f"if settles {{ {said} -m found }}"
        for counter, header in ((MORE, settling.MORE), (LESS, settling.LESS)):
            lines.append(f"http-request sc-add-gpc({counter},{number}) req.fhdr({header}) {there}")
        for tag, word in ((ENDS, "ends"), (MILLIONS, "millions"), (REST, "rest")):
            value = f"req.fhdr(x-modelfleet-{name}-{word})"
            lines.append(f"http-request sc-set-gpt({tag},{number}) {value} if settles {{ {value} -m found }}")
    return [*lines, "http-request return status 204 if settles"]
