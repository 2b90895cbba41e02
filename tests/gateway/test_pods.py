"""In a cluster: replicas at ports of pods whose addresses only DNS knows, and which come and go."""

from __future__ import annotations

import csv
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from modelfleet.infra.gateway.files import BODIES_CFG, HAPROXY_CFG
from modelfleet.infra.local import haproxy
from modelfleet.infra.planning.plan import Route
from modelfleet.serving.config.errors import SetupError
from modelfleet.serving.scaling import waiting_at
from tests.gateway.backend import Backend
from tests.gateway.conftest import Gateway, Make
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
#: Not used by the other tests; more ports than may be closed in a row.
FIRST, LAST = 8800, 8899
#: The pods: addresses of this machine at which nothing else listens.
ONE, TWO, THREE = "127.0.5.1", "127.0.5.2", "127.0.5.3"
ROUTES = tuple(
    Route(name, name.replace("/", "--"), (name,), most_replicas=4, places=1, queue=4, hash_balance_factor=125)
    for name in ("org/large", "small")
)


@dataclass
class Dns:
    """A name server that answers every question for an A record with `addresses`, and for AAAA by name with `sixth`."""

    addresses: list[str] = field(default_factory=list)
    sixth: dict[str, str] = field(default_factory=dict)
    socket: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    def start(self) -> Dns:
        self.socket.bind(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def _serve(self) -> None:
        while True:
            try:
                query, client = self.socket.recvfrom(4096)
            except OSError:
                return
            if query:
                self.socket.sendto(self._answer(query), client)

    def _answer(self, query: bytes) -> bytes:
        end = query.index(b"\0", 12) + 5  # the name, its type and its class
        (kind,) = struct.unpack("!H", query[end - 4 : end - 2])
        name = query[13 : 13 + query[12]].decode()  # without its domain
        own = {1: self.addresses, 28: [self.sixth[name]] if name in self.sixth else []}.get(kind, [])
        found = [socket.inet_pton(socket.AF_INET if kind == 1 else socket.AF_INET6, one) for one in own]
        records = b"".join(struct.pack("!HHHIH", 0xC00C, kind, 1, 1, len(one)) + one for one in found)
        return query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0) + query[12:end] + records


@pytest.fixture
def dns() -> Iterator[Dns]:
    server = Dns().start()
    yield server
    server.socket.close()


Start = Callable[..., Backend]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a replica at a port of a pod, or a pod's Ray Serve; all end with the test."""
    started: list[Backend] = []

    def begin(host: str, port: int, slug: str | None = "small") -> Backend:
        started.append(Backend(port, replica_of=slug, host=host).start())
        return started[-1]

    yield begin
    for one in started:
        one.stop()


@pytest.fixture
def gateway(make_gateway: Make, dns: Dns) -> Gateway:
    return make_gateway(routes=ROUTES, replica_ports=(FIRST, LAST), pods=4, dns=dns.port)


def places(gateway: Gateway, slug: str = "small") -> set[str]:
    """Where the replicas are that the gateway sends a model's requests to, as `address:port`."""
    lines = haproxy.admin(gateway.runtime, f"show servers conn model.{slug}")
    columns = [line.split() for line in lines.splitlines() if line.startswith(f"model.{slug}/")]
    names = {name.partition("/")[2]: f"{address}:{port}" for name, _, address, port, *_ in columns}
    text = requests.get(f"http://{gateway.runtime.metrics_bind}/metrics", timeout=5).text
    up = re.findall(rf'haproxy_server_status{{proxy="model\.{slug}",server="(replica-\d+)",state="UP"}} 1', text)
    return {names[name] for name in up}


def ask(gateway: Gateway, model: str = "small", times: int = 1) -> None:
    for _ in range(times):
        answer = gateway.post(CHAT, {"model": model})
        assert answer.status_code == 200, answer.text


def test_a_replica_is_found_wherever_it_is_and_gets_its_models_requests(
    gateway: Gateway, dns: Dns, start: Start
) -> None:
    small, large = start(ONE, FIRST), start(TWO, FIRST + 40, "org--large")
    dns.addresses = [ONE, TWO]
    wait_until(lambda: places(gateway) == {f"{ONE}:{FIRST}"}, what="a replica in the first pod")
    wait_until(lambda: places(gateway, "org--large") == {f"{TWO}:{FIRST + 40}"}, what="one in the second")
    ask(gateway, times=3)
    ask(gateway, "org/large", times=2)
    assert (len(small.seen), len(large.seen)) == (3, 2)


def test_a_replica_that_goes_or_whose_port_another_model_took_costs_no_request(
    gateway: Gateway, dns: Dns, start: Start
) -> None:
    leaving, staying = start(ONE, FIRST), start(TWO, FIRST)
    dns.addresses = [ONE, TWO]
    both = {f"{ONE}:{FIRST}", f"{TWO}:{FIRST}"}
    wait_until(lambda: places(gateway) == both, what="both replicas")
    leaving.stop()
    ask(gateway, times=4)
    leaving.replica_of = "org--large"
    leaving.start()
    wait_until(lambda: places(gateway, "org--large") == {f"{ONE}:{FIRST}"}, what="the port's new model")
    before = len(staying.seen)
    ask(gateway, times=4)
    ask(gateway, "org/large")
    assert len(staying.seen) == before + 4 and leaving.last.path.startswith("/org--large/")


def test_a_pod_that_dns_names_no_more_gets_no_requests_and_ends_its_streams(
    gateway: Gateway, dns: Dns, start: Start
) -> None:
    """The old Ray cluster of an upgrade: KubeRay deletes it while its replicas would still take requests."""
    old = start(ONE, FIRST)
    old.events = 80
    dns.addresses = [ONE]
    wait_until(lambda: places(gateway) == {f"{ONE}:{FIRST}"}, what="the old replica")
    lines = gateway.post(CHAT, {"model": "small", "stream": True}, stream=True).iter_lines()
    next(lines)
    new = start(TWO, FIRST)
    dns.addresses = [TWO]
    wait_until(lambda: places(gateway) == {f"{TWO}:{FIRST}"}, what="the new replica alone")
    ask(gateway, times=3)
    assert (len(old.seen), len(new.seen)) == (1, 3)
    assert [line for line in lines if line][-1] == b"data: [DONE]"


def test_what_no_replica_takes_goes_to_serve_in_any_of_the_pods(gateway: Gateway, dns: Dns, start: Start) -> None:
    """Of three pods two have no Ray Serve that answers; then a replica comes."""
    serve = start(TWO, gateway.backend.port, None)
    dns.addresses = [ONE, TWO, THREE]
    wait_until(lambda: gateway.post(CHAT, {"model": "small"}).status_code == 200, what="the pods' addresses")
    ask(gateway, times=6)
    assert len(serve.seen) >= 6
    found = start(THREE, FIRST)
    wait_until(lambda: places(gateway) == {f"{THREE}:{FIRST}"}, what="the replica")
    before = len(serve.seen)
    ask(gateway, times=3)
    assert (len(found.seen), len(serve.seen)) == (3, before)


def test_what_waits_goes_to_the_replica_that_comes(gateway: Gateway, dns: Dns, start: Start) -> None:
    first = start(ONE, FIRST)
    dns.addresses = [ONE]
    wait_until(lambda: places(gateway) == {f"{ONE}:{FIRST}"}, what="the first replica")
    first.answers.clear()
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(gateway.post, CHAT, {"model": "small"}) for _ in range(3)]
        host, _, port = gateway.runtime.metrics_bind.rpartition(":")
        wait_until(lambda: waiting_at([(host, int(port))], "small") == 2, what="two that wait at the gateway")
        second = start(TWO, FIRST)
        dns.addresses = [ONE, TWO]
        wait_until(lambda: sum(one.done() for one in asked) == 2, what="the second replica took what waited")
        first.answers.set()
        assert [one.result().status_code for one in asked] == [200, 200, 200]
    assert (len(first.seen), len(second.seen)) == (1, 2)


def test_two_gateways_agree_where_a_conversation_is_at_home(
    make_gateway: Make, gateway: Gateway, dns: Dns, start: Start
) -> None:
    """Each found the replicas in another order, and has other names for them."""
    replicas = {port: start(ONE, port) for port in (FIRST, FIRST + 1)}
    dns.addresses = [ONE]
    wait_until(lambda: len(places(gateway)) == 2, what="both replicas")
    late = start(TWO, FIRST)
    dns.addresses = [ONE, TWO]
    wait_until(lambda: len(places(gateway)) == 3, what="the third")
    dns.addresses = [TWO, ONE]
    other = make_gateway(routes=ROUTES, replica_ports=(FIRST, LAST), pods=4, dns=dns.port)
    wait_until(lambda: len(places(other)) == 3, what="all three")
    homes: list[list[int]] = []
    for one in (gateway, other):
        homes.append([])
        for number in range(12):
            before = [len(replica.seen) for replica in (*replicas.values(), late)]
            said = [{"role": role, "content": f"{role} {number}"} for role in ("user", "assistant", "user")]
            assert one.post(CHAT, {"model": "small", "messages": said}).status_code == 200
            after = [len(replica.seen) for replica in (*replicas.values(), late)]
            homes[-1].append(next(n for n, (was, is_) in enumerate(zip(before, after, strict=True)) if is_ > was))
    assert homes[0] == homes[1] and len(set(homes[0])) == 3


LARGE = {"model": "small", "messages": [{"role": "user", "content": "a" * 400_000}]}


def large_places(gateway: Gateway, slug: str = "small") -> set[str]:
    """Where the process for large bodies sends a model's requests to, as `address:port`."""
    text = haproxy.ask(gateway.runtime.bodies_admin_socket, "show stat")
    rows = csv.DictReader(text.removeprefix("# ").splitlines())
    own = (row for row in rows if row["pxname"] == f"model.{slug}" and row["svname"].startswith("replica-"))
    return {row["addr"] for row in own if row["status"].startswith("UP")}


def test_the_process_for_large_bodies_hears_where_replicas_are(gateway: Gateway, dns: Dns, start: Start) -> None:
    small, large = start(ONE, FIRST), start(TWO, FIRST + 40, "org--large")
    dns.addresses = [ONE, TWO]
    wait_until(lambda: large_places(gateway) == {f"{ONE}:{FIRST}"}, what="a replica in the first pod")
    wait_until(lambda: large_places(gateway, "org--large") == {f"{TWO}:{FIRST + 40}"}, what="one in the second")
    for model, replica in (("small", small), ("org/large", large)):
        assert gateway.post(CHAT, {**LARGE, "model": model}).status_code == 200
        assert len(replica.last.body) > 400_000


def test_it_hears_of_another_model_at_a_replicas_place(gateway: Gateway, dns: Dns, start: Start) -> None:
    leaving, staying = start(ONE, FIRST), start(TWO, FIRST)
    dns.addresses = [ONE, TWO]
    wait_until(lambda: large_places(gateway) == {f"{ONE}:{FIRST}", f"{TWO}:{FIRST}"}, what="both replicas")
    leaving.stop()
    for _ in range(4):
        assert gateway.post(CHAT, LARGE).status_code == 200
    leaving.replica_of = "org--large"
    leaving.start()
    wait_until(lambda: large_places(gateway, "org--large") == {f"{ONE}:{FIRST}"}, what="the port's new model")
    assert large_places(gateway) == {f"{TWO}:{FIRST}"} and len(staying.seen) >= 4


def test_a_large_bodys_stream_from_a_pod_that_dns_names_no_more_ends_in_peace(
    gateway: Gateway, dns: Dns, start: Start
) -> None:
    old = start(ONE, FIRST)
    old.events = 160
    dns.addresses = [ONE]
    wait_until(lambda: large_places(gateway) == {f"{ONE}:{FIRST}"}, what="the old replica")
    lines = gateway.post(CHAT, {**LARGE, "stream": True}, stream=True).iter_lines()
    next(lines)
    new = start(TWO, FIRST)
    dns.addresses = [TWO]
    wait_until(lambda: large_places(gateway) == {f"{TWO}:{FIRST}"}, what="the new replica alone")
    assert gateway.post(CHAT, LARGE).status_code == 200
    assert (len(old.seen), len(new.seen)) == (1, 1)
    assert [line for line in lines if line][-1] == b"data: [DONE]"


def test_without_the_first_process_the_other_one_keeps_what_it_knows_and_so_does_its_successor(
    gateway: Gateway, dns: Dns, start: Start
) -> None:
    """As in a cluster, where a container that ends is started again beside the other one.

    What the first one told of a pod that DNS does not name is not believed.
    """
    start(ONE, FIRST)
    start(TWO, FIRST)
    dns.addresses = [ONE]
    here = {f"{ONE}:{FIRST}"}
    wait_until(lambda: large_places(gateway) == here, what="the replica")
    assert gateway.processes
    os.kill(gateway.processes.gateway, signal.SIGKILL)
    os.kill(gateway.processes.bodies, signal.SIGKILL)
    with Path(gateway.runtime.found_replicas).open("a", encoding="utf-8") as file:
        file.write(f"{TWO} {FIRST} small\n")
    bodies = again(gateway, BODIES_CFG)
    wait_until(lambda: large_places(gateway) == here, what="the replica without the first process", retry=SetupError)
    first = again(gateway, HAPROXY_CFG)
    gateway.processes = haproxy.Processes(first, bodies)
    seen: list[set[str]] = []

    def known() -> bool:
        seen.append(large_places(gateway))
        return places(gateway) == here

    wait_until(known, what="the first process knows it again", retry=(SetupError, requests.ConnectionError))
    assert all(one == here for one in seen)
    assert gateway.post(CHAT, LARGE).status_code == 200


def again(gateway: Gateway, name: str) -> int:
    """One of the two processes anew, by itself; its id."""
    command = [haproxy.find_binary(), "-db", "-f", f"{gateway.runtime.folder}/{name}"]
    with gateway.log.open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log).pid


def found(gateway: Gateway) -> set[str]:
    """The replicas of which the first process tells the other one: address, port and slug."""
    return set(Path(gateway.runtime.found_replicas).read_text(encoding="utf-8").splitlines())


def test_a_process_that_is_replaced_tells_no_more_where_replicas_are(gateway: Gateway, dns: Dns, start: Start) -> None:
    """The old one, which an open stream keeps, does not know the new model."""
    first = start(ONE, FIRST)
    first.events = 400
    dns.addresses = [ONE]
    wait_until(lambda: places(gateway) == {f"{ONE}:{FIRST}"}, what="the replica")
    lines = gateway.post(CHAT, {"model": "small", "stream": True}, stream=True).iter_lines()
    next(lines)
    gateway.change(routes=(*ROUTES, Route("new", "new", ("new",), most_replicas=4)))
    start(ONE, FIRST + 1, "new")
    line = f"{ONE} {FIRST + 1} new"
    wait_until(lambda: line in found(gateway), what="the new model's replica")
    start(ONE, FIRST + 2)
    until = time.monotonic() + 6
    while time.monotonic() < until:
        assert line in found(gateway)
        time.sleep(0.02)
    assert f"{ONE} {FIRST + 2} small" in found(gateway)
    next(lines)  # the old process has not ended
