"""The `http-request` rules of the gateway, in the order in which a request meets them."""

from __future__ import annotations

from modelfleet.infra.gateway import access, budgets, jwt
from modelfleet.infra.gateway.answers import (
    RETRY_AFTER_BUSY_S,
    RETRY_AFTER_RATE_S,
    error,
    log_format,
    quoted,
    refuses,
    returns,
)
from modelfleet.infra.gateway.maps import names_of
from modelfleet.infra.planning.gateway_paths import (
    BY_MODEL,
    DIRECT_GET,
    EACH,
    FORMS,
    GENERATES,
    HEALTH,
    MODELS,
    READY,
    VERSION,
)
from modelfleet.infra.planning.plan import GatewayPlan
from modelfleet.serving.versions import PINNED

#: Form of a client's own request id that the gateway accepts.
REQUEST_ID = "^[A-Za-z0-9._-]{1,128}$"
#: How many characters of an unknown model's name an answer repeats.
ECHOED_NAME = 200
#: Headers by which a request tells Ray Serve how to treat it (`ray/serve/_private/constants.py`); not for clients.
SERVE_CONTROL_HEADERS = ("x-request-disconnect-disabled", "x-request-timeout-seconds")
#: Headers by which `/invocations` takes another adapter than the body's, or opens a session on the replica's disk
#: (`model_hosting_container_standards/sagemaker`). The body names what a request gets.
SAGEMAKER_HEADERS = "x-amzn-sagemaker-"


#: In an answer of the second process: the tokens of the longest answers that the request asked for.
ANSWERS_HEADER = "x-modelfleet-answers"
#: On answers to who has shown no key: with it they cannot keep the gateway's connections, of which there are few.
CLOSE = {"Connection": "close"}


#: The page loads nothing, speaks to its own gateway only, and stands in no other page.
CHAT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    **CLOSE,
}


#: Version, trace, span, flags; and what neither id may be.
TRACEPARENT = "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?$"
ZEROS = "^[0-9a-f]{2}-(0{32}|[0-9a-f]{32}-0{16})-"


def identity(gateway: GatewayPlan) -> list[str]:
    """Request id: the client's if harmless, otherwise a new one. Drops headers that only the gateway may send."""
    return [
        *(_trace() if gateway.traces else []),
        "http-request set-var(txn.path) path",
        f"acl harmless_id req.fhdr(x-request-id) -m reg {REQUEST_ID}",
        "http-request set-var(txn.request_id) req.fhdr(x-request-id) if harmless_id",
        "http-request set-var(txn.request_id) uuid() unless { var(txn.request_id) -m found }",
        "http-request set-header x-request-id %[var(txn.request_id)]",
        "http-request del-header x-modelfleet- -m beg",
        f"http-request del-header {SAGEMAKER_HEADERS} -m beg",
        *(f"http-request del-header {header}" for header in SERVE_CONTROL_HEADERS),
        # The gateway reads the last one and the engine the first.
        refuses(400, "Content-Type was given more than once.", "Bad Request")
        + " if { req.fhdr_cnt(content-type) gt 1 }",
    ]


def _trace() -> list[str]:
    """A client's trace goes on as it is; without one, or with a broken one, a request begins its own, and is sampled.

    https://www.w3.org/TR/trace-context/#traceparent-header
    """
    whole = f"req.fhdr(traceparent) -m reg {TRACEPARENT}"
    unknown = f"unless {{ req.fhdr_cnt(traceparent) eq 1 }} {{ {whole} }} !{{ req.fhdr(traceparent) -m reg {ZEROS} }}"
    hexadecimal = "uuid(),regsub(-,,g)"
    made = f"00-%[{hexadecimal}]-%[{hexadecimal},bytes(0,16)]-01"
    return [
        f"http-request del-header tracestate {unknown}",
        f"http-request set-header traceparent {made} {unknown}",
    ]


def probes(gateway: GatewayPlan) -> list[str]:
    """`/health`: the gateway runs. `/ready`: every model is ready. Neither needs a key."""
    states = ",".join(
        f'{{"id":"{route.model_id}","ready":%[nbsrv(ready.{route.slug}),bool,iif(true,false)]}}'
        for route in gateway.routes
    )
    # Who has no key learns no name where names are hidden from some who have one.
    models = "" if access.classes(gateway) else f',"models":[{states}]'
    ready = returns(200, f'{{"ready":true{models}}}', headers=CLOSE, dynamic=True)
    not_ready = returns(503, f'{{"ready":false{models}}}', headers=CLOSE, dynamic=True)
    return [
        "acl reads method GET HEAD",
        returns(200, '{"status":"ok"}', headers=CLOSE) + f" if {{ path {HEALTH} }} reads",
        # In its first second a process has checked no model yet, and HAProxy considers an unchecked server up.
        "acl down date,sub(proc.started) lt 2",
        *(f"acl down nbsrv(ready.{route.slug}) lt 1" for route in gateway.routes),
        *([f"{not_ready} if {{ path {READY} }} reads down"] if gateway.routes else []),
        f"{ready} if {{ path {READY} }} reads",
    ]


def chat(gateway: GatewayPlan, file: str) -> list[str]:
    """`/`: a page to try the models with. It needs no key, and sends the one that is typed into it."""
    if not gateway.chat:
        return []
    page = f'http-request return status 200 content-type "text/html; charset=utf-8" file {file}'
    extra = "".join(f" hdr {name} {quoted(value)}" for name, value in CHAT_HEADERS.items())
    return [f"{page}{extra} if {{ path / }} reads"]


def keys(gateway: GatewayPlan, folder: str, key_map: str) -> list[str]:
    """Finds the key's name by its hash and drops the key. With auth `none` the client's address takes its place.

    With auth `jwt` only a token has a name.
    """
    drop = ["http-request del-header authorization", "http-request del-header x-api-key"]
    if gateway.auth == "none":
        return ["http-request set-var(txn.key) src", *drop]
    lookup = f"sha2(256),hex,lower,map_str({key_map})"
    by_hash = [
        f"http-request set-var(txn.key) http_auth_bearer,{lookup}",
        f"http-request set-var(txn.key) req.fhdr(x-api-key),{lookup} unless {{ var(txn.key) -m found }}",
    ]
    what, shown = ("API key", "key") if gateway.auth == "keys" else ("token", "token")
    refusal = refuses(
        401, f"No valid {what} was given. Send it as `Authorization: Bearer <{shown}>`.", "AuthenticationError",
        headers={"WWW-Authenticate": "Bearer", **CLOSE},
    )  # fmt: skip
    return [
        refuses(400, "Authorization was given more than once.", "Bad Request")
        + " if { req.fhdr_cnt(authorization) gt 1 }",
        *(by_hash if gateway.auth == "keys" else []),
        *jwt.token(gateway, folder),
        refusal + " unless { var(txn.key) -m found }",
        *drop,
        *access.ends(gateway, folder),
        *access.tell_replica(gateway),
    ]


def listing(gateway: GatewayPlan, folder: str) -> list[str]:
    """`GET /v1/models`, `/v1/models/{id}` and `/version` from the plan: a replica of another vLLM does not start."""
    cards = f"{folder}/cards.map"
    version = f'{{"version":"{PINNED["vllm"]}"}}'
    missing = _with_field(
        error("The model `{0}` does not exist.", "NotFoundError", 404, "model"), "var(txn.model),json(utf8s)"
    )
    own = access.of_class(gateway)
    return [
        f"{returns(200, f'%[str(*){own},map_str({cards})]', dynamic=True)} if {{ path {MODELS} }} reads",
        f"{returns(200, version)} if {{ path {VERSION} }} reads",
        f"acl one_model path_beg {MODELS}/",
        f"http-request set-var(txn.model) path,url_dec,regsub(^{MODELS}/,),bytes(0,{ECHOED_NAME}) if one_model reads",
        "acl whole_list var(txn.model) -m str *"
        + (f" {access.NAMES}\n    acl whole_list var(txn.model) -m beg {access.BASE}" if own else ""),
        f"http-request set-var(txn.card) var(txn.model){own},map_str({cards}) if one_model reads !whole_list",
        f"{returns(200, '%[var(txn.card)]', dynamic=True)} if one_model reads {{ var(txn.card) -m found }}",
        f"{returns(404, missing, dynamic=True)} if one_model reads",
    ]


def paths(gateway: GatewayPlan, folder: str) -> list[str]:
    """The open paths, compared exactly, so that no spelling of another path slips through."""
    unknown = _with_field(error("There is no {0} here.", "NotFoundError", 404), "var(txn.path),json(utf8s)")
    return [
        *(f"acl by_model path -m str {path}" for path in BY_MODEL),
        f"http-request set-var(txn.slug) path,field(2,/){access.of_class(gateway)},map_str({folder}/slugs.map)",
        "http-request set-var(txn.rest) path,regsub(^/[^/]+,) if { var(txn.slug) -m found }",
        *(f"acl direct var(txn.rest) -m str {path}" for path in BY_MODEL),
        *(f"acl direct_get var(txn.rest) -m str {path}" for path in DIRECT_GET),
        f"acl known_get path -m str {HEALTH} {READY} {MODELS} {VERSION}",
        f"acl known_get path_beg {MODELS}/",
        "acl posts method POST",
        wrong_method("POST") + " if by_model !posts or direct !posts",
        wrong_method("GET") + " if known_get !reads or direct_get !reads",
        f"{returns(404, unknown, dynamic=True)} if !by_model !direct !direct_get",
        "http-request set-var(txn.model) var(txn.slug) if direct or direct_get",
        *access.class_listing(gateway, folder),
    ]


def wrong_method(allowed: str) -> str:
    """405 with the method that the path takes."""
    return refuses(405, f"This path takes {allowed}.", "Method Not Allowed", headers={"Allow": allowed})


def _with_field(body: str, fetch: str) -> str:
    """The body as a log-format string with one dynamic field in place of `{0}`."""
    return log_format(body).replace("{0}", f"%[{fetch}]")


def limits(gateway: GatewayPlan, folder: str) -> list[str]:
    """Per key (or address), and per team: open requests and requests per minute; a refused request does not count."""
    lines = ["http-request track-sc0 var(txn.key) table limits if posts"]
    if gateway.teams:
        lines.append("http-request track-sc1 var(txn.team) table teams if posts { var(txn.team) -m found }")
    lines += access.limits(gateway, folder) if gateway.entries or gateway.teams else []
    lines += budgets.spent(gateway, folder)
    lines += _over(gateway, "open", "open requests", "at a time", RETRY_AFTER_BUSY_S, used="sc{0}_conn_cur,sub(1)")
    lines += _over(gateway, "requests", "requests", "per minute", RETRY_AFTER_RATE_S, used="sc_gpc_rate(0,{0})")
    for number, any_has in enumerate(access.has(gateway, "requests")):
        lines += [f"http-request sc-inc-gpc(0,{number}) if posts"] if any_has else []
    return lines


def _over(gateway: GatewayPlan, limit: str, what: str, per: str, retry_after_s: int, *, used: str) -> list[str]:
    """429 for a key, and for a team, that has used all of a limit."""
    lines = []
    own, teams = access.has(gateway, limit)
    if own and not gateway.entries:
        most = {"open": "concurrent_requests", "requests": "requests_per_minute", "tokens": "tokens_per_minute"}[limit]
        number = getattr(gateway.settings, most)
        message = f"Too many {what} for this API key; allowed are {number} {per}."
        answer = refuses(429, message, "RateLimitError", headers={"Retry-After": str(retry_after_s)})
        lines.append(f"{answer} if posts {{ {used.format(0)} ge {number} }}")
    elif own:
        lines.append(
            access.over(what, per, retry_after_s, whose="API key", variable=f"txn.{limit}", used=used.format(0))
        )
    if teams:
        lines.append(
            access.over(
                what, per, retry_after_s, whose="API key's team", variable=f"txn.team_{limit}", used=used.format(1)
            )
        )
    return lines


def tokens(gateway: GatewayPlan, folder: str) -> list[str]:
    """Tokens per minute and key, charged on arrival: the most that the request's prompt and answers may take.

    What an answer took is known only after its last byte, and a limit that waits for it lets through whatever arrives
    meanwhile. OpenAI and Azure also charge at admission. Then the replica corrects the charge (`budgets`).
    """
    if not gateway.counts_tokens:
        return []
    per = "per minute. A request counts with a quarter of its bytes and the max_tokens of each answer"
    longest = max((route.answer_tokens for route in gateway.routes), default=0)
    settled, used = budgets.used(gateway)
    return [
        *_generates(),
        *settled,
        *_over(gateway, "tokens", "tokens", per, RETRY_AFTER_RATE_S, used=used),
        # The longest of all models while the name is not read yet (`"mod\\u0065l"`).
        f"http-request set-var(txn.answer) int({longest}) if generates",
        f"http-request set-var(txn.answer) var(txn.slug),map_str_int({folder}/answers.map) if generates routed",
        *_each(),
        *_counted("posts !form"),
        "http-request sc-add-gpc(1,0) var(txn.charge) if { var(txn.charge) -m found }",
        *(
            ["http-request sc-add-gpc(1,1) var(txn.charge) if { var(txn.charge) -m found } { var(txn.team) -m found }"]
            if gateway.teams
            else []
        ),
        *budgets.charged(gateway),
    ]


def unseen_tokens(gateway: GatewayPlan) -> list[str]:
    """Charges what the second process found in the rest of a body: `n` and `max_tokens` beyond the first buffer.

    It comes with the head of the answer, which is late. What the first part said is charged by then, and that is a
    quarter of half a buffer at least: 32,768 tokens.
    """
    if not gateway.counts_tokens:
        return []
    more = "{ var(txn.unseen) -m int gt 0 }"
    lines = [
        f"http-response set-var(txn.unseen) res.fhdr({ANSWERS_HEADER}),sub(txn.answers) if {{ be_name bodies }}",
        f"http-response sc-add-gpc(1,0) var(txn.unseen) if {more}",
    ]
    if gateway.teams:
        lines.append(f"http-response sc-add-gpc(1,1) var(txn.unseen) if {more} {{ var(txn.team) -m found }}")
    return lines


def says_answers(gateway: GatewayPlan) -> list[str]:
    """How the second process says it."""
    say = f"http-response set-header {ANSWERS_HEADER} %[var(txn.answers)] if {{ var(txn.answers) -m found }}"
    return [say] if gateway.counts_tokens else []


def all_tokens(gateway: GatewayPlan, folder: str) -> list[str]:
    """The same count in the second process, once the model is known, of a body that is whole."""
    if not gateway.counts_tokens:
        return []
    return [
        *_generates(),
        f"http-request set-var(txn.answer) var(txn.slug),map_str_int({folder}/answers.map) if generates",
        *_counted("generates !form"),
        *budgets.charged_unseen(gateway),
    ]


def _generates() -> list[str]:
    return [
        *(f"acl generates path -m str {path}" for path in GENERATES),
        *(f"acl generates var(txn.rest) -m str {path}" for path in GENERATES),
    ]


def _counted(when: str) -> list[str]:
    """The count, and what it refuses.

    HAProxy ends a Lua action after 4 s and goes on with the next rule (`tune.lua.session-timeout`; src/hlua.c,
    hlua_action, HLUA_E_ETMOUT): a body that keeps it busy for longer would pass uncharged.
    """
    return [
        f"http-request lua.count_tokens if {when}",
        refuses(400, "`max_tokens`, `n` and their like are numbers.", "Bad Request", param="body")
        + " if { var(txn.fault) -m str number }",
        not_json(),
        refuses(400, "The request body takes too long to read.", "Bad Request", param="body")
        + f" if {when} !{{ var(txn.charge) -m found }}",
    ]


def _each() -> list[str]:
    """Says to Lua which key holds several texts, and which keys are read with each of them."""
    lines = []
    for number, (path, (several, common)) in enumerate(EACH.items()):
        lines += [f"acl each{number} path -m str {path}", f"acl each{number} var(txn.rest) -m str {path}"]
        lines.append(f"http-request set-var(txn.each) str({several}) if each{number}")
        lines.append(f"http-request set-var(txn.common) str(/{'/'.join(common)}/) if each{number}")
    return lines


def size(gateway: GatewayPlan) -> list[str]:
    """Bodies above the stack's limit are refused before they are read."""
    limit = gateway.settings.max_body_mib << 20
    message = f"The request body is too large; allowed are {gateway.settings.max_body_mib} MiB."
    return [refuses(413, message, "Request Entity Too Large") + f" if {{ req.body_size gt {limit} }}"]


def not_json() -> str:
    """400 for a body that was read and is no JSON object."""
    return refuses(400, "The request body is not valid JSON.", "Bad Request", param="body") + (
        " if { var(txn.fault) -m str json }"
    )


def partly_read(gateway: GatewayPlan, *, last: bool) -> list[str]:
    """Sends a body larger than the buffer to the second process, which refuses what exceeds the stack's limit."""
    if last:
        limit = gateway.settings.max_body_mib << 20
        message = f"The request body is too large; allowed are {gateway.settings.max_body_mib} MiB."
        return [refuses(413, message, "Request Entity Too Large") + f" if {{ req.body_len gt {limit} }}"]
    return [
        *(["http-request allow if generates not_whole !form"] if gateway.counts_tokens else []),
        *(["http-request allow if restricted posts not_whole"] if access.classes(gateway) else []),
        "http-request allow if direct { var(txn.chunked) -m found }",
        "http-request allow if by_model !routed { var(txn.partial) -m found }",
        "http-request allow if by_model !routed { var(txn.chunked) -m found }",
    ]


def _partly(buffer: int) -> list[str]:
    """Notes that a body is partly read. A chunked one has no length to compare with: half a buffer is enough."""
    chunked = f"{{ req.fhdr(transfer-encoding) -m found }} {{ req.body_len gt {buffer // 2} }}"
    return [
        "http-request set-var(txn.body_len) req.body_len",
        "http-request set-var(txn.partial) bool(true) if { req.body_size,sub(txn.body_len) gt 0 }",
        f"http-request set-var(txn.chunked) bool(true) if {chunked}",
        "acl not_whole var(txn.partial) -m found",
        "acl not_whole var(txn.chunked) -m found",
    ]


def routing(gateway: GatewayPlan, folder: str, *, buffer: int, last: bool, wait_s: int) -> list[str]:
    """Finds the slug of the body's model, in the first process and in the `last`, whose buffer holds every body."""
    own = access.of_class(gateway)
    models = f"{own.removeprefix(',')},map_str({folder}/models.map)" if own else f"map_str({folder}/models.map)"
    return [
        f"http-request wait-for-body time {wait_s}s if posts",
        *([] if last else _partly(buffer)),
        # Only speech comes as a form. Elsewhere the engine reads JSON, whatever the type says.
        *(f"acl speech path -m str {path}" for path in FORMS),
        *(f"acl speech var(txn.rest) -m str {path}" for path in FORMS),
        "http-request set-var(txn.form) bool(true) if speech { req.fhdr(content-type) -m beg -i multipart/ }",
        "acl form var(txn.form) -m found",
        "acl routed var(txn.slug) -m found",
        "acl named var(txn.model) -m found",
        "http-request set-var(txn.model) req.body,json_query('$.model') if by_model !form",
        f"http-request set-var(txn.slug) var(txn.model),{models} if by_model named",
        *([] if last else tokens(gateway, folder)),
        *partly_read(gateway, last=last),
        "acl missing var(txn.fault) -m str missing",
        *access.class_routing(gateway, folder),
        "http-request lua.read_model if by_model !routed",
        not_json(),
        refuses(400, "`model` is not a string.", "Bad Request", param="body.model")
        + " if { var(txn.fault) -m str type }",
        *_unnamed(gateway, folder),
        f"http-request set-var(txn.slug) var(txn.model),{models} if by_model !routed named",
        *_unknown(gateway, folder),
        *(all_tokens(gateway, folder) if last else []),
        *home(gateway, folder),
        "http-request set-path /%[var(txn.slug)]%[path] if by_model",
    ]


def home(gateway: GatewayPlan, folder: str) -> list[str]:
    """Finds the replica that has a conversation's KV blocks, of models in `homes.map`."""
    if not any(route.hash_balance_factor for route in gateway.routes):
        return []
    return [
        f"http-request set-var(txn.most_open) var(txn.slug),map_str_int({folder}/homes.map) if posts !form",
        "http-request lua.find_home if { var(txn.most_open) -m found }",
    ]


def _unnamed(gateway: GatewayPlan, folder: str) -> list[str]:
    """400 for a body without `model`, with the names that the key may use; where one model is served, that one."""
    if len(gateway.routes) == 1:
        return [f"http-request set-var(txn.model) str({gateway.routes[0].model_id}) if by_model missing"]
    body = log_format(error("The body names no `model`; this gateway serves {0}.", "BadRequestError", 400, "model"))
    answer = "http-request return status 400 content-type application/json lf-string"
    return [
        f"{answer} {quoted(body.replace('{0}', names))} if by_model missing{when}"
        for names, when in _served(gateway, folder)
    ]


def _unknown(gateway: GatewayPlan, folder: str) -> list[str]:
    """vLLM's 404 for a model that does not exist, or not for this key."""
    message = "The model `{0}` does not exist. Valid aliases: {1}."
    body = _with_field(
        error(message, "NotFoundError", 404, "model"), f"var(txn.model),bytes(0,{ECHOED_NAME}),json(utf8s)"
    )
    lines = []
    for names, when in _served(gateway, folder):
        answer = returns(404, body.replace("{1}", names), dynamic=True)
        lines.append(f"{answer} if by_model !routed{when}")
        if when == RESTRICTED:
            # Below /<slug> a body may name an adapter, of this model or, which that replica refuses, of another.
            lines.append(f"{answer} if restricted direct !{{ var(txn.granted),strcmp(txn.slug) eq 0 }}")
    return lines


#: How the rule of a class goes on.
RESTRICTED = " restricted"


def _served(gateway: GatewayPlan, folder: str) -> list[tuple[str, str]]:
    """The names that a key may use, as text or a fetch, each with the condition of the keys that it is for."""
    names = log_format(", ".join(name for route in gateway.routes for name in names_of(route)))
    if not access.classes(gateway):
        return [(names, "")]
    own = f"%[str({access.NAMES}),concat(,txn.class),map_str({folder}/cards.map)]"
    return [(names, " !restricted"), (own, RESTRICTED)]
