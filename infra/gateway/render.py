"""Two HAProxy configurations from the plan: the gateway, and a second process for bodies larger than its buffer.

Why two: HAProxy routes by a body only when the whole body fits `tune.bufsize`, and anybody, with a key or without, may
send that much in headers. So the first process has small buffers, checks keys and limits, and handles nearly
everything. Only a body that is larger and has not named its model within the first buffer goes to the second process,
over a socket that only the first process can open. The second has buffers of the stack's `maxBodyMib` and few
connections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from math import ceil

from modelfleet.infra.gateway import access, budgets, files, jwt, maps, rules
from modelfleet.infra.gateway.answers import OVERLOADED, RETRY_AFTER_DOWN_S, proxy_errors, refuses, serve_errors
from modelfleet.infra.gateway.files import GatewayFiles, Runtime
from modelfleet.infra.planning.gateway_paths import KEY_METRICS, METRICS, QUEUES
from modelfleet.infra.planning.plan import GatewayPlan, Route

#: Bytes of a buffer in the first process: a request of about 50,000 tokens; also bounds the headers of strangers.
BUFFER = 256 << 10
#: Bytes that rewriting may add to a request in a buffer, and that headers may take on top of the largest body.
REWRITE = 16 << 10
#: Seconds in which a request's head, and its body, must have arrived.
HEAD_TIMEOUT_S = 15
BODY_TIMEOUT_S = 60
#: Pods at whose Ray Serve a request is tried that no replica takes.
SERVE_PODS = 3
#: The name of the front door's port, and how many seconds longer than the front door the gateway keeps a connection.
DOOR = "door"
LONGER_THAN_DOOR_S = 60

LOG = (
    '{"time":"%[date,utime(%Y-%m-%dT%H:%M:%SZ)]","level":"INFO","request_id":"%[var(txn.request_id),json(utf8s)]",'
    '"client":"%[src]","key":"%[var(txn.key),json(utf8s)]","method":"%HM","path":"%[var(txn.path),bytes(0,200),json(utf8s)]","model":"%[var(txn.model),bytes(0,200),json(utf8s)]",'
    '"status":%ST,"bytes":%B,"request_bytes":%U,"first_byte_ms":%Tr,"total_ms":%Ta,"queue_ms":%Tw,"backend":"%b","end":"%ts"}'
)

#: Per key: open requests, allowed requests and charged tokens in the last minute, and what `/metrics/keys` shows.
LIMITS_TABLE = (
    "stick-table type string len 64 size 100k expire 24h "
    "store conn_cur,gpc(2),gpc_rate(2,60s),http_req_cnt,http_err_cnt,bytes_out_cnt"
)


def render(
    gateway: GatewayPlan, runtime: Runtime, *, upstream: str, upstreams: Mapping[str, str] | None = None
) -> GatewayFiles:
    """All files of the gateway except the key map. Pure: equal arguments give equal text.

    `upstream` is the `host:port` of Ray Serve's HTTP server; `upstreams` overrides it for single slugs.
    Raises `ValueError` for a plan that HAProxy could misread (`plan()` makes none).
    """
    maps.check_routes(gateway.routes)
    routes = sorted(gateway.routes, key=lambda route: route.model_id)
    if runtime.replica_ports is None:  # whoever is behind `upstream` chooses the replica
        routes = [replace(route, hash_balance_factor=0) for route in routes]
    if not budgets.in_usd(gateway):
        routes = [replace(route, usd_per_million_tokens=None) for route in routes]
    gateway = replace(gateway, routes=tuple(routes))
    servers = {route.slug: (upstreams or {}).get(route.slug, upstream) for route in gateway.routes}
    texts: dict[str, str] = {files.ANSWERS_MAP: maps.answers_map(gateway)} if gateway.counts_tokens else {}
    texts |= {files.CHAT: _own(files.CHAT)} if gateway.chat else {}
    if homes := maps.homes_map(gateway):
        texts[files.HOMES_MAP] = homes
    if gateway.jwt:
        texts |= {jwt.LUA: _own(jwt.LUA), **jwt.texts(gateway.jwt)}
    if gateway.entries:
        texts[files.ACCESS_MAP] = access.access_map(gateway)
    if gateway.teams:
        texts[files.TEAMS_MAP] = access.teams_map(gateway)
    if gateway.settles:
        texts |= {files.SETTLE_LUA: _own(files.SETTLE_LUA), **budgets.maps(gateway)}
    return GatewayFiles(
        texts
        | {
            files.HAPROXY_CFG: _first(gateway, runtime, servers, upstream),
            files.BODIES_CFG: _second(gateway, runtime, servers, upstream),
            files.MODELS_MAP: maps.models_map(gateway) + access.class_models(gateway),
            files.SLUGS_MAP: maps.slugs_map(gateway) + access.class_slugs(gateway),
            files.CARDS_MAP: maps.cards_map(gateway) + access.class_cards(gateway),
            files.LUA: _own(files.LUA),
        }
    )


def _own(name: str) -> str:
    """A file of this package."""
    return resources.files("modelfleet.infra.gateway").joinpath(name).read_text(encoding="utf-8")


def _first(gateway: GatewayPlan, runtime: Runtime, servers: Mapping[str, str], upstream: str) -> str:
    frontend = [
        f"bind {runtime.bind}",
        *_door(runtime),
        f"log-format '{LOG}'",
        "http-after-response set-header x-request-id %[var(txn.request_id)] if { var(txn.request_id) -m found }",
        "http-after-response del-header server",
        # The second process says which model it found; from a replica the header would be a forgery.
        "http-response set-var(txn.model) res.fhdr(x-modelfleet-model) if { be_name bodies }",
        *rules.unseen_tokens(gateway),
        "http-response del-header x-modelfleet- -m beg",
        *serve_errors(),
        *rules.identity(gateway),
        *rules.probes(gateway),
        *rules.chat(gateway, f"{runtime.folder}/{files.CHAT}"),
        *rules.keys(gateway, runtime.folder, runtime.key_map),
        *rules.listing(gateway, runtime.folder),
        *rules.paths(gateway, runtime.folder),
        *rules.size(gateway),
        *rules.limits(gateway, runtime.folder),
        *budgets.tell(gateway, runtime),
        *rules.routing(gateway, runtime.folder, buffer=BUFFER, last=False, wait_s=BODY_TIMEOUT_S),
        *(["use_backend bodies if generates not_whole !form"] if gateway.counts_tokens else []),
        *(["use_backend bodies if restricted posts not_whole"] if access.classes(gateway) else []),
        "use_backend bodies if direct { var(txn.chunked) -m found }",
        "use_backend model.%[var(txn.slug)] if { var(txn.slug) -m found }",
        "default_backend bodies",
    ]
    slots = bodies_at_once(gateway, runtime)
    sections = [
        _global(
            gateway,
            runtime,
            buffer=BUFFER,
            most=runtime.max_connections,
            admin=runtime.admin_socket,
            more=jwt.loads(gateway, runtime),
        ),
        _defaults(gateway, runtime),
        _resolvers(runtime, needed=runtime.resolve_names or jwt.asks(gateway)),
        _pods(runtime, upstream),
        _section("frontend api", frontend),
        *(_model(route, servers[route.slug], runtime, one_queue(gateway, route)) for route in gateway.routes),
        *(_readiness(route, servers[route.slug], runtime) for route in gateway.routes),
        _section(
            "backend bodies", ["timeout queue 10s", f"server bodies unix@{runtime.bodies_socket} maxconn {slots}"]
        ),
        _section("backend limits", [LIMITS_TABLE]),
        _section("backend teams", [LIMITS_TABLE]) if gateway.teams else None,
        *(_section(f"backend {name}", [table]) for name, table in budgets.tables(gateway)),
        _section("listen issuer", jwt.issuer(gateway, runtime)) if jwt.asks(gateway) else None,
        _metrics(runtime.metrics_bind, gateway.routes, [*KEY_METRICS_RULES, *budgets.hear(gateway)]),
    ]
    return _text(sections)


def _door(runtime: Runtime) -> list[str]:
    """The port of a load balancer or an Ingress, and there the client's address in place of its own.

    Only the last address counts: the load balancer appended it, all before it are what the client wrote. Idle
    connections are the load balancer's to close: one that closes under its next request is a 502 for the client.
    https://docs.aws.amazon.com/elasticloadbalancing/latest/application/x-forwarded-headers.html
    https://docs.aws.amazon.com/elasticloadbalancing/latest/application/edit-load-balancer-attributes.html
    """
    if runtime.door_bind is None:
        return []
    return [
        f"bind {runtime.door_bind} name {DOOR}",
        f"timeout http-keep-alive {runtime.door_idle_s + LONGER_THAN_DOOR_S}s",
        f"http-request set-src req.hdr_ip(x-forwarded-for,-1) if {{ so_name -m str {DOOR} }}",
    ]


def _second(gateway: GatewayPlan, runtime: Runtime, servers: Mapping[str, str], upstream: str) -> str:
    frontend = [
        f"bind unix@{runtime.bodies_socket} mode 600",
        "no log",
        "http-response set-header x-modelfleet-model %[var(txn.model)]",
        *rules.says_answers(gateway),
        "acl reads method GET HEAD",
        *access.hear_class(gateway),
        *rules.paths(gateway, runtime.folder),
        *rules.routing(gateway, runtime.folder, buffer=0, last=True, wait_s=BODY_TIMEOUT_S),
        "use_backend model.%[var(txn.slug)]",
    ]
    buffer = (gateway.settings.max_body_mib << 20) + BUFFER
    sections = [
        _global(
            gateway,
            runtime,
            buffer=buffer,
            most=2 * bodies_at_once(gateway, runtime) + 8,
            admin=runtime.bodies_admin_socket,
        ),
        _defaults(gateway, runtime),
        _resolvers(runtime, needed=runtime.resolve_names),
        _pods(runtime, upstream),
        _section("frontend bodies", frontend),
        *(_model(route, servers[route.slug], runtime) for route in gateway.routes),
        *([_metrics(runtime.bodies_metrics_bind, (), [])] if runtime.bodies_metrics_bind else []),
    ]
    return _text(sections)


def bodies_at_once(gateway: GatewayPlan, runtime: Runtime) -> int:
    """Connections that the second process accepts: a body may occupy two buffers, its own and its connection's."""
    return max(4, runtime.bodies_memory_mib // (2 * gateway.settings.max_body_mib))


def _global(
    gateway: GatewayPlan, runtime: Runtime, *, buffer: int, most: int, admin: str, more: Sequence[str] = ()
) -> str:
    first = buffer == BUFFER
    lines = [
        # What Lua says, but not the lines of HAProxy's own client, which has one (`info`) for each closed port that
        # `gateway.lua` asks.
        _log(runtime, "notice"),
        f"maxconn {most}",
        # Two processes on one port would silently share its connections; a reload hands the sockets over instead.
        "noreuseport",
        f"hard-stop-after {gateway.settings.timeout_s + BODY_TIMEOUT_S}s",
        f"stats socket {admin} mode 600 level admin expose-fd listeners",
        f"server-state-file {runtime.server_state(admin)}",
        "max-spread-checks 50",
        "set-var proc.started date()",
        f"tune.bufsize {buffer}",
        f"tune.maxrewrite {REWRITE}",
        " ".join([f"lua-load-per-thread {runtime.folder}/{files.LUA}", *_replicas_place(runtime, asks=first)]),
        *([f"lua-load {runtime.folder}/{files.SETTLE_LUA}"] if gateway.settles else []),
        *more,
    ]
    if first and runtime.pods is not None:
        # For `gateway.lua`, which asks ports that are closed: a second time, after a second, would be too late.
        lines += ["httpclient.retries 0", "httpclient.timeout.connect 1s", "httpclient.resolvers.disabled on"]
    if runtime.threads:
        lines.append(f"nbthread {runtime.threads}")
    return _section("global", lines)


def _replicas_place(runtime: Runtime, *, asks: bool) -> list[str]:
    """How `gateway.lua` finds a cluster's replicas: the first process asks ports, the second reads what it wrote."""
    if runtime.pods is None or runtime.replica_ports is None:
        return []
    return [runtime.found_replicas, *(str(port) for port in runtime.replica_ports if asks)]


def _defaults(gateway: GatewayPlan, runtime: Runtime) -> str:
    return _section(
        "defaults",
        [
            "mode http",
            _log(runtime, "info"),
            "option dontlognull",
            "option abortonclose",
            # Without it the head and the first event of a stream wait for more data: 80 ms over two hops, measured.
            "option http-no-delay",
            "option http-restrict-req-hdr-names delete",
            f"timeout http-request {HEAD_TIMEOUT_S}s",
            "timeout http-keep-alive 75s",
            "timeout connect 5s",
            "timeout queue 30s",
            f"timeout client {gateway.settings.timeout_s}s",
            f"timeout server {gateway.settings.timeout_s}s",
            "retries 2",
            *proxy_errors(),
        ],
    )


def _log(runtime: Runtime, most: str) -> str:
    """By default a line ends after 1,023 bytes, in the middle of its JSON."""
    return f"log {runtime.log} len 65535 format raw local0 {most}"


def _resolvers(runtime: Runtime, *, needed: bool) -> str | None:
    if not needed:
        return None
    # By default an answer has room for 28 addresses, and one that is cut is none.
    room = ["accepted_payload_size 8192"] if runtime.pods is not None else []
    return _section(f"resolvers {files.RESOLVERS}", ["parse-resolv-conf", *room, "hold valid 10s"])


def _pods(runtime: Runtime, upstream: str) -> str | None:
    """The addresses of the pods with replicas, where `gateway.lua` reads them; no request goes here."""
    if runtime.pods is None:
        return None
    return _section(
        "backend pods", [f"server-template pod- {runtime.pods} {upstream} resolvers {files.RESOLVERS} init-addr none"]
    )


def _server(upstream: str, runtime: Runtime, options: str = "") -> str:
    if runtime.pods is not None:  # a name with an address for each pod
        return f"server-template serve- {SERVE_PODS} {upstream} resolvers {files.RESOLVERS} init-addr none{options}"
    resolve = f" resolvers {files.RESOLVERS} init-addr last,libc,none" if runtime.resolve_names else ""
    return f"server serve {upstream}{resolve}{options}"


@dataclass(frozen=True)
class OneQueue:
    """A gateway's part of a model's queue: `places` of requests at each replica, `most` that wait for each, seconds.

    With several gateways side by side each has its part of a replica's places, so that together they send it no more
    than it works on. None of `most` is no limit.
    """

    places: int
    most: int | None
    timeout_s: int


def one_queue(gateway: GatewayPlan, route: Route) -> OneQueue | None:
    """None for a route that says no places."""
    if route.places is None:
        return None
    most = None if route.queue is None else ceil(route.queue / gateway.side_by_side)
    return OneQueue(ceil(route.places / gateway.side_by_side), most, gateway.settings.timeout_s)


def _waits(route: Route, queue: OneQueue) -> list[str]:
    """A request waits here, in one queue for all replicas, until one of them has a place; a full queue refuses it."""
    lines = [f"timeout queue {queue.timeout_s}s"]
    if queue.most is None:
        return lines
    refused = refuses(503, OVERLOADED, "Service Unavailable", headers={"Retry-After": str(RETRY_AFTER_DOWN_S)})
    backend = f"model.{route.slug}"
    return [
        *lines,
        # By those that wait, not by all that are here: a replica that leaves is none of `nbsrv`, and its streams go on.
        f"http-request set-var(txn.may_wait) nbsrv({backend}),mul({queue.most})",
        f"{refused} if {{ be_conn_free({backend}) eq 0 }} {{ queue({backend}),sub(txn.may_wait) ge 0 }}",
    ]


def _model(route: Route, upstream: str, runtime: Runtime, queue: OneQueue | None = None) -> str:
    """Where a model's requests go.

    Ray Serve's HTTP server has no health check: while a replica is replaced it keeps requests waiting, and HAProxy must
    let it. The health check of a replica's port asks which application it serves, so no port is tied to a model.
    """
    # vLLM's application notices when a client leaves; Serve's own watch for it would cost two more tasks a request.
    # Only Serve's HTTP server needs that watch, and it carries just the requests of a model that sleeps.
    undisturbed = [] if route.scales_to_zero else ["http-request set-header x-request-disconnect-disabled ?1"]
    undisturbed += budgets.price(route)
    if runtime.replica_ports is None:
        return _section(f"backend model.{route.slug}", [*undisturbed, _server(upstream, runtime)])
    lines = [
        *undisturbed,
        "balance leastconn",
        *(_waits(route, queue) if queue else []),
        # Of a server that is down HAProxy thinks nothing, and the line above decides.
        *(["use-server %[var(txn.home)] if { var(txn.home) -m found }"] if route.hash_balance_factor else []),
        "option redispatch 1",
        *(["load-server-state-from-file global"] if runtime.pods is None else ["option allbackups"]),
        "option httpchk GET /-/routes",
        "http-check expect status 200",
        f"http-check expect string '\"/{route.slug}\"'",
        "timeout check 2s",
        # A refused connection takes the replica out at once, so the retry goes to another one or to Serve.
        "default-server inter 1s fall 2 rise 1 observe layer4 error-limit 1 on-error mark-down"
        + (f" maxconn {queue.places}" if queue else ""),
        *_replicas(route, upstream, runtime, runtime.replica_ports),
        _server(upstream, runtime, " backup" + (" maxconn 0" if queue else "")),
    ]
    return _section(f"backend model.{route.slug}", lines)


def _replicas(route: Route, upstream: str, runtime: Runtime, ports: tuple[int, int]) -> list[str]:
    """A server for each port of this host, or in a cluster for each replica, of which `gateway.lua` finds the place."""
    if runtime.pods is not None:
        return [f"server replica-{number} 127.0.0.1:1 check disabled" for number in range(1, route.most_replicas + 1)]
    host, (first, last) = upstream.rpartition(":")[0], ports
    return [f"server replica-{port} {host}:{port} check" for port in range(first, last + 1)]


def _readiness(route: Route, upstream: str, runtime: Runtime) -> str:
    """Checked for `/ready` only. A model that may sleep is ready when Serve is: a check of the model would wake it."""
    if runtime.replica_ports and runtime.pods is None and not route.scales_to_zero:
        first, last = runtime.replica_ports
        follow = (f"model.{route.slug}/replica-{port}" for port in range(first, last + 1))
        servers = [f"server {one.rpartition('/')[2]} 127.0.0.1 track {one}" for one in follow]
        return _section(f"backend ready.{route.slug}", ["load-server-state-from-file none", *servers])
    path = "/-/healthz" if route.scales_to_zero else f"/{route.slug}/health"
    checks = [
        f"option httpchk GET {path}",
        "http-check expect status 200",
        "timeout check 5s",
        "no log",
        _server(upstream, runtime, f" check inter {runtime.ready_interval_s}s fall 2 rise 1"),
    ]
    return _section(f"backend ready.{route.slug}", checks)


#: Only the first process knows keys.
KEY_METRICS_RULES = (f"http-request use-service lua.key_metrics if {{ path {KEY_METRICS} }}",)


def _metrics(bind: str, routes: Sequence[Route], more: Sequence[str]) -> str:
    lines = [
        f"bind {bind}",
        "no log",
        f"http-request use-service prometheus-exporter if {{ path {METRICS} }}",
        *more,
        *(
            f"http-request return status 200 content-type text/plain lf-string %[queue(model.{route.slug})] "
            f"if {{ path {QUEUES}/{route.slug} }}"
            for route in routes
            if route.places is not None
        ),
        "http-request return status 404",
    ]
    return _section("frontend metrics", lines)


def _section(head: str, lines: Sequence[str]) -> str:
    return "\n".join([head, *(f"    {line}" for line in lines)]) + "\n"


def _text(sections: Sequence[str | None]) -> str:
    note = "# Rendered by modelfleet from the stack's plan; edits are overwritten.\n"
    return "\n".join([note, *(section for section in sections if section)])
