"""The renderer's input about the place where HAProxy runs, and its output."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

#: Rendered files by their role. `keys.map` is not among them: it comes from a Secret, see `render_key_map`.
HAPROXY_CFG = "haproxy.cfg"
BODIES_CFG = "bodies.cfg"
MODELS_MAP = "models.map"
SLUGS_MAP = "slugs.map"
CARDS_MAP = "cards.map"
ANSWERS_MAP = "answers.map"
HOMES_MAP = "homes.map"
ACCESS_MAP = "access.map"
TEAMS_MAP = "teams.map"
LUA = "gateway.lua"
SETTLE_LUA = "settle.lua"
CHAT = "chat.html"
#: HAProxy's section for names that are looked up while it runs.
RESOLVERS = "cluster"


@dataclass(frozen=True)
class Runtime:
    """Addresses and folders at run time. Folders are absolute; HAProxy never writes into `folder`.

    `bind` and `metrics_bind` are `address:port`; `run_folder` holds the sockets, and is one for both processes.
    `key_map` is the file of key hashes, used only with auth `keys`. `resolve_names` is for Kubernetes, where the
    upstream is a DNS name that may not exist yet. `bodies_memory_mib` bounds the second process's memory for request
    bodies, which are too large for the first. `replica_ports` (first, last) are the ports of this host on which Ray
    Serve lets replicas listen (`RAY_SERVE_ENABLE_DIRECT_INGRESS=1`): requests go straight to them, and to Serve's own
    HTTP server only while a model has no replica. With `pods` these are ports of the pods that the upstream's name has
    in DNS, of which so many are looked at. At `door_bind` whoever comes is a load balancer or an Ingress, which
    says the client's address in X-Forwarded-For; `door_idle_s` is how long it keeps a silent connection. `told_at` is
    where replicas reach `metrics_bind`, `host:port` in HAProxy's log format; without it, there. Each
    `jwks_interval_s` seconds it asks the tokens' issuer for its keys, by TLS with the authorities in `ca_file`.
    """

    bind: str
    folder: str
    run_folder: str
    key_map: str
    metrics_bind: str = "127.0.0.1:9101"
    bodies_metrics_bind: str | None = None
    log: str = "stdout"
    threads: int | None = None
    max_connections: int = 4096
    bodies_memory_mib: int = 2048
    resolve_names: bool = False
    ready_interval_s: int = 2
    replica_ports: tuple[int, int] | None = None
    pods: int | None = None
    door_bind: str | None = None
    door_idle_s: int = 0
    told_at: str | None = None
    jwks_interval_s: float = 60
    ca_file: str = "/etc/ssl/certs/ca-certificates.crt"

    @property
    def settle_address(self) -> str:
        """Where replicas tell what requests took, in HAProxy's log format."""
        return self.told_at or self.metrics_bind

    @property
    def admin_socket(self) -> str:
        """HAProxy's runtime API, mode 0600."""
        return f"{self.run_folder}/admin.sock"

    @property
    def bodies_admin_socket(self) -> str:
        """The second process's runtime API, mode 0600."""
        return f"{self.run_folder}/bodies-admin.sock"

    def server_state(self, admin_socket: str) -> str:
        """The file of servers that were up; written before a reload, so that the new process knows from the start."""
        return admin_socket.removesuffix(".sock") + ".state"

    @property
    def found_replicas(self) -> str:
        """In a cluster: where replicas are, which the first process tells the second one."""
        return f"{self.run_folder}/replicas"

    @property
    def bodies_socket(self) -> str:
        """Where the second process listens, mode 0600."""
        return f"{self.run_folder}/bodies.sock"


@dataclass(frozen=True)
class GatewayFiles:
    """The rendered texts by file name, all to be placed in `Runtime.folder`."""

    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def content_id(self) -> str:
        """sha256 over names and texts: changes exactly when a reload is due."""
        digest = hashlib.sha256()
        for name, text in sorted(self.texts.items()):
            digest.update(f"{name}\0{len(text)}\0{text}".encode())
        return digest.hexdigest()
