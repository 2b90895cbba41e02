"""`modelfleet key`: makes, lists, rotates and revokes API keys. A secret is shown once; only its hash is deployed.

The secrets are Pulumi's, `modelfleet:apiKeys.NAME` in the stack's file. `rotate` also keeps the hash of each old secret
that is still valid, with its end, in `modelfleet:rotatedKeys.NAME`. `revoke` takes all out, and the hashes out of the
running gateway.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from modelfleet.cli import output, pulumi_run
from modelfleet.infra.gateway.keys import NAME, Rotated, hash_key
from modelfleet.infra.names import local_folder
from modelfleet.infra.stack import LoadedStack, load_stack
from modelfleet.serving.config.errors import EXIT_ENVIRONMENT, Finding, InputErrors, SetupError
from modelfleet.serving.config.validation import near

SECRETS, ROTATED = "modelfleet:apiKeys", "modelfleet:rotatedKeys"
#: Before each secret, so that scanners for leaked ones can know it; then 256 random bits.
PREFIX = "mf-"
RANDOM_BYTES = 32
LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")
_DURATION = re.compile(r"(\d{1,5})([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86400}


def run_add(stack: str, name: str) -> int:
    """Make the secret of a key and show it; returns the exit code. Raises `InputErrors` for a name that is taken."""
    root = Path.cwd()
    loaded = _with_keys(root, stack)
    if not NAME.fullmatch(name):
        raise _refused("add", f"found {name[:80]!r}; allowed are letters, digits, `.`, `_`, `-`, at most 63")
    if name in _names(loaded):
        raise _refused("add", f"{name} has a secret; `modelfleet key rotate {name} --stack {stack}` makes another")
    secret = _new_secret()
    pulumi_run.make_stack(root, stack)  # in a backend of one's own there is nothing to encrypt with before
    pulumi_run.set_secret(root, stack, _path(SECRETS, name), secret)
    _show(name, secret)
    if name not in loaded.config.keys:
        output.say(
            f"{name} may use every model, with the gateway's limits; "
            f"`modelfleet:keys.{name}` in the stack file says otherwise"
        )
    output.say(f"It is valid after `modelfleet up --stack {stack}`, which drops no stream.")
    return 0


def run_rotate(stack: str, name: str, grace: str) -> int:
    """Make another secret for a key; the old one ends after `grace`, such as `24h`. Returns the exit code."""
    root = Path.cwd()
    loaded = _with_keys(root, stack)
    seconds = _seconds(grace)
    _known("rotate", name, loaded)
    pulumi_run.make_stack(root, stack)
    old = _secrets(root, stack, SECRETS).get(name)
    if old is None:
        raise SetupError(
            f"stack {stack}: the secret of {name} cannot be read; is this the passphrase or key that made it?"
        )
    now = int(time.time())
    earlier = _still_valid(root, loaded, name, now)
    rotated, secret = Rotated(hash_key(old), now + seconds), _new_secret()
    # In this order: were it the other way round and cut in between, the old secret would end at once.
    pulumi_run.set_secret(root, stack, _path(ROTATED, name), ",".join(one.text() for one in [*earlier, rotated]))
    pulumi_run.set_secret(root, stack, _path(SECRETS, name), secret)
    _show(name, secret)
    output.say(
        f"After `modelfleet up --stack {stack}` it is valid, and the old one until {rotated.text().partition(' ')[2]}."
    )
    for one in earlier:
        output.say(f"One from an earlier rotation stays valid until {one.text().partition(' ')[2]}.")
    return 0


def run_revoke(stack: str, name: str) -> int:
    """Take a key out of the stack's file and out of the running gateway; returns the exit code, 2 if that refuses."""
    root = Path.cwd()
    loaded = _with_keys(root, stack)
    _known("revoke", name, loaded)
    # The gateway first: whoever revokes a key is in a hurry. What it does not take stops nothing.
    where, code = _revoke_in_gateway(root, loaded, name)
    rotated = _mapping(loaded, ROTATED)
    for path in (SECRETS, ROTATED) if name in rotated else (SECRETS,):
        pulumi_run.remove_config(root, stack, _path(path, name))
    output.say(f"{name}: revoked; {where}")
    return code


def run_list(stack: str, *, as_json: bool = False) -> int:
    """Print the keys of a stack, without any secret; returns the exit code."""
    loaded = _with_keys(Path.cwd(), stack)
    found = rows(loaded)
    if as_json:
        output.show_json({"stack": stack, "keys": found})
        return 0
    heads = ("key", "team", "models", "ends", "requests/min", "tokens/min", "open", "budget", "tags", "secret")
    table = Table(*heads, box=SIMPLE_HEAD)
    for row in found:
        lists = [", ".join(one) for one in (row["models"], row["team_models"]) if one]
        limits = [" of team's ".join(str(one) for one in (row[limit], row[f"team_{limit}"]) if one) for limit in LIMITS]
        budgets = " of team's ".join(_budget(one) for one in (row["budget"], row["team_budget"]) if one)
        tags = ", ".join(f"{name}={value}" for name, value in row["tags"].items())
        may = " ∩ ".join(lists) or "all"
        shown = (row["key"], row["team"], may, row["expires"], *limits, budgets, tags, row["secret"])
        table.add_row(*(str(one or "–") for one in shown))
    output.show(table)
    return 0


def _budget(budget: Mapping[str, Any]) -> str:
    amount = f"{budget['tokens']:,}" if budget["tokens"] else f"{budget['usd']:,.2f} USD"
    return f"{amount}/{budget['per']}"


def rows(stack: LoadedStack) -> list[dict[str, Any]]:
    """One row per key: `secret` says whether it has one, and whether an old one may still be valid.

    A key may use what both `models` and `team_models` match, where they are given, and each limit of its team is for
    all keys of the team together. `tags` are the team's and its own.
    """
    with_secret, rotated = _names(stack), _mapping(stack, ROTATED)
    config = stack.config
    return [
        {
            "key": name,
            "team": key.team if key else None,
            "models": key.models if key else None,
            "expires": key.expires if key else None,
            "team_models": team.models if team else None,
            **{limit: getattr(key, limit, None) or getattr(config.gateway, limit) for limit in LIMITS},
            **{f"team_{limit}": getattr(team, limit, None) for limit in LIMITS},
            "budget": key.budget.model_dump() if key and key.budget else None,
            "team_budget": team.budget.model_dump() if team and team.budget else None,
            "tags": {**(team.tags if team else {}), **(key.tags if key else {})},
            "secret": ("rotated" if name in rotated else "set") if name in with_secret else "none",
        }
        for name in sorted({*with_secret, *stack.config.keys})
        for key in [config.keys.get(name)]
        for team in [config.teams.get(key.team) if key and key.team else None]
    ]


def _revoke_in_gateway(root: Path, stack: LoadedStack, name: str) -> tuple[str, int]:
    """Returns in words what the gateway knows now, and the exit code."""
    if not stack.config.target.on_this_machine:
        return _revoke_in_cluster(root, stack, name)
    from modelfleet.infra.local import haproxy
    from modelfleet.infra.local.runtime import gateway_runtime

    local = stack.config.local
    folder = local_folder(root, stack.name)
    runtime = gateway_runtime(str(folder), local.gateway_port, local.metrics_port)
    if not Path(runtime.key_map).exists():
        return "no gateway of this stack runs here", 0
    try:
        ended = haproxy.revoke(runtime, {name})
    except haproxy.NoGatewayError:
        return "no gateway of this stack runs here, and the next one does not know it", 0
    except SetupError as error:
        again = f"`modelfleet down --stack {stack.name}` and `up` end it"
        return f"but the running gateway may still know it ({error}): {again}", EXIT_ENVIRONMENT
    return f"the gateway refuses it from now on ({output.counted(ended, 'secret')})", 0


def _revoke_in_cluster(root: Path, stack: LoadedStack, name: str) -> tuple[str, int]:
    """The same in the stack's cluster, by the user's own right to change the gateway's Secret and Deployment."""
    from modelfleet.doctor.readers.cluster import connect
    from modelfleet.doctor.subject import open_subject
    from modelfleet.infra.kubernetes.api import ApiError, Unreachable
    from modelfleet.infra.kubernetes.revoke import ROLLED_S, revoke

    subject = open_subject(root, stack.name)
    again = f"run `modelfleet up --stack {stack.name}` now"
    try:
        with output.status(f"{name}: the gateway takes it out"), closing(connect(subject)) as api:
            done = revoke(api, subject.namespace, {name})
    except (ApiError, Unreachable) as error:
        return f"but the running gateway still knows it ({error}): {again}", EXIT_ENVIRONMENT
    if done.secrets is None:
        return f"no gateway of this stack is in namespace {subject.namespace}", 0
    ended = output.counted(done.secrets, "secret")
    if not done.rolled:
        slow = f"its pods are not new after {ROLLED_S} s"
        return f"but some of the running gateway may still know it ({ended}; {slow}): {again}", EXIT_ENVIRONMENT
    return f"the gateway refuses it from now on ({ended})", 0


def _with_keys(root: Path, stack: str) -> LoadedStack:
    loaded = load_stack(root, stack)
    if (auth := loaded.config.auth) != "keys":
        raise InputErrors([loaded.finding(("auth",), f"is {auth}, so no API key opens anything; leave it out first")])
    if loaded.key_names is None:
        raise InputErrors(
            [
                loaded.finding(
                    ("apiKeys",),
                    "is encrypted in one piece; set each key by its name, with `pulumi config set --secret --path "
                    f"{SECRETS}.NAME`",
                )
            ]
        )
    return loaded


def _names(stack: LoadedStack) -> frozenset[str]:
    return stack.key_names or frozenset()


def _mapping(stack: LoadedStack, key: str) -> Mapping[str, Any]:
    data = stack.document.data["config"].get(key)
    return data if isinstance(data, dict) else {}


def _known(command: str, name: str, stack: LoadedStack) -> None:
    if name not in _names(stack):
        raise _refused(command, f"found {name[:80]!r}; {near(name, _names(stack))}")


def _refused(command: str, message: str) -> InputErrors:
    return InputErrors([Finding(f"modelfleet key {command}", 0, "NAME", message)])


def _seconds(grace: str) -> int:
    match = _DURATION.fullmatch(grace)
    if match is None:
        finding = Finding(
            "modelfleet key rotate", 0, "--grace", f"found {grace[:80]!r}; allowed are 30m, 24h, 7d and so on"
        )
        raise InputErrors([finding])
    return int(match[1]) * _SECONDS[match[2]]


def _secrets(root: Path, stack: str, section: str) -> dict[str, str]:
    text = pulumi_run.ask(root, ["config", "get", section, "--stack", stack])
    return dict(json.loads(text)) if text else {}


def _still_valid(root: Path, stack: LoadedStack, name: str, now: int) -> list[Rotated]:
    """The old secrets of a key whose grace runs, by their hashes; raises `SetupError` for what cannot be read."""
    if name not in _mapping(stack, ROTATED):
        return []
    try:
        found = Rotated.parse_all(_secrets(root, stack.name, ROTATED)[name])
    except (KeyError, ValueError):
        raise SetupError(
            f"stack {stack.name}: the old secrets of {name} cannot be read, and a rotation would end them; "
            f"`modelfleet key revoke {name}` and `key add` begin anew"
        ) from None
    return [one for one in found if one.ends_at > now]


def _path(section: str, name: str) -> str:
    """Quoted, because names have dots."""
    return f'{section}["{name}"]'


def _new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def _show(name: str, secret: str) -> None:
    output.say(f"The secret of {name}, shown only now:")
    output.write(secret)
