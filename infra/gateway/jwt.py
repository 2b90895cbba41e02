"""Tokens of an OIDC issuer (JWT) beside the API keys, with HAProxy's own functions.

A token names its key (`kid`) and algorithm. Only pairs that the issuer's key set allows are in `jwt.map`, so neither
`none` nor HMAC with a public key as its secret ever reaches a comparison (RFC 8725, 3.1). Claims count after the
signature. Whom a token names is called `jwt:<claim>` from then on: no API key has a colon in its name. What it may is
what its team and its list of models may: HAProxy looks up the entry `jwt:<team>:<list>` of `access.map`.

The keys are those of the last run. Where the issuer has an address, `jwks.lua` asks there (`issuer`) for what they are
now, and takes them over without a reload.
"""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from modelfleet.infra.gateway.answers import log_format, quoted, returns
from modelfleet.infra.gateway.files import RESOLVERS, Runtime
from modelfleet.infra.planning.plan import JWT_PREFIX, GatewayPlan, JwtPlan

MAP, LUA = "jwt.map", "jwks.lua"
#: A claim that can be a name: a word of HAProxy's maps and logs, and short enough for its tables with the prefix. `$`
#: would let a last line's end pass.
CLAIM = "^[A-Za-z0-9][A-Za-z0-9._@|+-]{0,58}\\z"
#: Seconds for which a token may come too early: clocks differ. RFC 7519 calls it a leeway.
LEEWAY_S = 60
#: `aud` may be a list; its first entries are looked at.
AUDIENCES = 8
#: Seconds in which the issuer begins to answer.
ANSWER_S = 5
HTTPS = 443
CLOSE = {"Connection": "close"}


def texts(jwt: JwtPlan) -> dict[str, str]:
    """Each public key as PEM, and which key id with which algorithm is which."""
    lines = [f"{key.kid}|{algorithm} {number}\n" for number, key in enumerate(jwt.keys) for algorithm in key.algorithms]
    return {MAP: "".join(lines), **{_file(number): key.pem for number, key in enumerate(jwt.keys)}}


def _file(number: int) -> str:
    return f"jwt-{number}.pem"


def loads(gateway: GatewayPlan, runtime: Runtime) -> list[str]:
    """Has HAProxy run `LUA`, which asks the issuer where that has an address."""
    if gateway.jwt is None:
        return []
    asks = f" {runtime.jwks_interval_s}" if gateway.jwt.jwks else ""
    return [
        "tune.lua.log.stderr off",  # what it says is in the log already
        f"lua-load {runtime.folder}/{LUA} {runtime.folder} {runtime.run_folder}{asks}",
    ]


def asks(gateway: GatewayPlan) -> bool:
    """Whether the gateway asks the issuer for its keys."""
    return gateway.jwt is not None and gateway.jwt.jwks is not None


def issuer(gateway: GatewayPlan, runtime: Runtime) -> list[str]:
    """The lines of `listen issuer`: by TLS to the key set's own address, whatever the request was.

    HAProxy's own client for Lua would take an answer of any size, and any time for it.
    """
    if gateway.jwt is None or gateway.jwt.jwks is None:
        return []
    address = urlsplit(gateway.jwt.jwks)
    host = address.hostname or ""
    path = (address.path or "/") + (f"?{address.query}" if address.query else "")
    # Left to itself HAProxy takes the IPv6 address of a name with both, and NetworkPolicies here let no pod reach that.
    found = f"resolvers {RESOLVERS} resolve-prefer ipv4 init-addr last,libc,none"
    tls = f"ssl verify required ca-file {quoted(runtime.ca_file)} ssl-min-ver TLSv1.2 sni str({host}) verifyhost {host}"
    return [
        f"bind unix@{runtime.run_folder}/issuer.sock mode 600",
        "no log",
        f"timeout server {ANSWER_S}s",
        "retries 1",
        f"http-request set-header host {quoted(log_format(address.netloc))}",
        f"http-request set-uri {quoted(log_format(path))}",
        f"server issuer {host}:{address.port or HTTPS} {found} {tls}",
    ]


def token(gateway: GatewayPlan, folder: str) -> list[str]:
    """Where no API key was found: finds whom a token names, or says why it names nobody."""
    jwt = gateway.jwt
    if jwt is None:
        return []
    of_list = ",concat(,txn.jwt_list)" if jwt.lists else ""
    known = f"var(txn.entry),map_str({folder}/access.map)"
    return [
        "http-request set-var(txn.jwt) http_auth_bearer unless { var(txn.key) -m found }",
        # Three parts with a header that can be read; all else is an unknown API key.
        "http-request set-var(txn.jwt_alg) var(txn.jwt),jwt_header_query('$.alg') if { var(txn.jwt) -m found }",
        "acl token var(txn.jwt_alg) -m found",
        "http-request set-var(txn.jwt_kid) var(txn.jwt),jwt_header_query('$.kid') if token",
        "http-request lua.verify_token if token",
        *_refused("no key of its issuer has this `kid` with this `alg`", "token !{ var(txn.jwt_key) -m found }"),
        # An extension that the gateway does not know must not be ignored (RFC 7515, 4.1.11).
        *_refused("`crit` is not supported", "token { var(txn.jwt),jwt_header_query('$.crit') -m found }"),
        *_refused("`crit` is not supported", "token { var(txn.jwt),jwt_header_query('$.crit[0]') -m found }"),
        *_refused("its signature is wrong", "token !{ var(txn.jwt_verified) -m int 1 }"),
        *_claims(jwt, folder),
        f"http-request set-var(txn.key) str({JWT_PREFIX}),concat(,txn.jwt_name) if token",
        f"http-request set-var(txn.entry) str({JWT_PREFIX}),concat(,txn.jwt_team){of_list} if token",
        *(_refused("its team may use none of its models", f"token !{{ {known} -m found }}") if jwt.lists else []),
    ]


def _claims(jwt: JwtPlan, folder: str) -> list[str]:
    claim = "var(txn.jwt),jwt_payload_query"
    right = [f"acl for_us {claim}('$.aud{at}') -m str {_word(jwt.audience)}" for at in ("", *_places())]
    when = "%[var(txn.jwt_exp),utime(%Y-%m-%dT%H:%M:%SZ)]"
    lines = [
        f"acl issued {claim}('$.iss') -m str {_word(jwt.issuer)}",
        *_refused("`iss` is another issuer", "token !issued"),
        *right,
        *_refused("`aud` is not this service", "token !for_us"),
        "http-request set-var(txn.now) date()",
        f"http-request set-var(txn.jwt_exp) {claim}('$.exp','int') if token",
        *_refused("it has no `exp`", "token !{ var(txn.jwt_exp) -m int gt 0 }"),
        *_refused(f"it ended at {when}", "token { var(txn.jwt_exp),sub(txn.now) le 0 }"),
        f"http-request set-var(txn.jwt_nbf) {claim}('$.nbf','int') if token",
        *_refused("`nbf` is in the future", f"token {{ var(txn.jwt_nbf),sub(txn.now) gt {LEEWAY_S} }}"),
        f"http-request set-var(txn.jwt_name) {claim}('$.{jwt.name_claim}') if token",
        *_refused(
            f"`{jwt.name_claim}` is missing, or no name of 1 to 59 letters, digits and . _ @ | + -",
            f"token !{{ var(txn.jwt_name) -m reg {quoted(CLAIM)} }}",
        ),
    ]
    if jwt.team_claim:
        lines += _team(jwt.team_claim, claim, folder)
    return lines + (_models(jwt) if jwt.lists else [])


def _team(name: str, claim: str, folder: str) -> list[str]:
    return [
        f"http-request set-var(txn.jwt_team) {claim}('$.{name}') if token",
        f"http-request set-var(txn.jwt_known) var(txn.jwt_team),map_str({folder}/teams.map) if token",
        *_refused(f"`{name}` is missing, or no team of this service", "token !{ var(txn.jwt_known) -m found }"),
    ]


def _models(jwt: JwtPlan) -> list[str]:
    """The first list that the token names, as text or in an array, which HAProxy's own JSON reads no further."""
    return [
        f"http-request lua.find_list {jwt.models_claim} {','.join(jwt.lists)} if token",
        *_refused(
            f"`{jwt.models_claim}` is missing, or no list of models of this service",
            "token !{ var(txn.jwt_list) -m found }",
        ),
    ]


def _places() -> list[str]:
    return [f"[{number}]" for number in range(AUDIENCES)]


def _word(text: str) -> str:
    """A text after `-m str`, which may be anything but a flag."""
    return f"-- {quoted(text)}"


def _refused(why: str, condition: str) -> list[str]:
    """401 with what is wrong, in RFC 6750's words."""
    body = {"message": f"The token is not valid: {why}.", "type": "AuthenticationError", "param": None, "code": 401}
    text = json.dumps({"error": body}, separators=(",", ":"))
    headers = {"WWW-Authenticate": 'Bearer error="invalid_token"', **CLOSE}
    return [returns(401, text, headers=headers, dynamic="%[" in why) + f" if {condition}"]
