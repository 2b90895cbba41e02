"""An issuer that rotates its keys while the gateway runs: a real HTTPS server, and the real HAProxy that asks it."""

from __future__ import annotations

import json
import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from modelfleet.infra.gateway import jwt
from modelfleet.infra.gateway.render import _own
from modelfleet.infra.local import haproxy
from modelfleet.infra.planning.plan import JwtPlan, KeyPlan
from modelfleet.infra.reading.jwks import JwksError, keys_of
from tests.gateway.conftest import Gateway, Make
from tests.gateway.test_jwt import CURVES, ask, jwks, jwt_plan, signers, token
from tests.gateway.test_pods import Dns
from tests.unit.kubernetes.https_server import Certificate, certificate
from tests.waiting import wait_until

HOST = "127.0.0.1"
#: How often the gateway asks here; in a stack once a minute.
EVERY_S = 0.2


class Issuer:
    """Answers each request with `answer`: bytes as they are, or a function that gets the socket."""

    def __init__(self, folder: Path, authority: Certificate, name: str = HOST, port: int = 0) -> None:
        self.answer: bytes | Callable[[ssl.SSLSocket], None] = published(jwks("rsa"))
        self.asked: list[bytes] = []
        own = certificate(name, authority)
        (folder / f"{name}.pem").write_bytes(own.certificate + own.key)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / f"{name}.pem")
        issuer = self

        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                try:
                    with tls.wrap_socket(self.request, server_side=True) as stream:
                        head = b""
                        while part := stream.recv(65536):
                            head += part
                            if b"\r\n\r\n" in head:
                                break
                        issuer.asked.append(head)
                        if callable(issuer.answer):
                            issuer.answer(stream)
                        else:
                            stream.sendall(issuer.answer)
                except OSError:
                    return  # who asked does not trust this certificate, or has read enough

        ThreadingTCPServer.allow_reuse_address = True
        self._server = ThreadingTCPServer((HOST, port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}/keys?of=1"

    def down(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def published(body: bytes, status: str = "200 OK", *head: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", *head, "connection: close"]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificate, Path]:
    made = certificate("authority")
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    path.write_bytes(made.certificate)
    return made, path


@pytest.fixture
def issuer(authority: tuple[Certificate, Path], tmp_path: Path) -> Iterator[Issuer]:
    made = Issuer(tmp_path, authority[0])
    yield made
    made.down()


def plan_of(url: str | None) -> JwtPlan:
    """As the last run left it: the issuer had one RSA key."""
    return replace(jwt_plan("rsa"), team_claim=None, entries=(KeyPlan("jwt:"),), jwks=url)


@pytest.fixture(scope="module")
def running(make_gateway: Make, authority: tuple[Certificate, Path]) -> Gateway:
    """Asks nobody until a test says whom. Two threads, because both verify."""
    return make_gateway(jwt=plan_of(None), at={"jwks_interval_s": EVERY_S, "ca_file": str(authority[1]), "threads": 2})


@pytest.fixture
def gateway(running: Gateway, issuer: Issuer) -> Gateway:
    running.change(jwt=plan_of(issuer.url))
    wait_until(lambda: issuer.asked, what="the first question")
    return running


def old(**changes: object) -> str:
    return token(**changes)  # type: ignore[arg-type]


def new(**changes: object) -> str:
    return token("ES256", "P-256", **changes)  # type: ignore[arg-type]


def status(gateway: Gateway, one: str) -> int:
    return ask(gateway, one).status_code


def becomes(gateway: Gateway, wanted: int, one: str) -> None:
    wait_until(lambda: status(gateway, one) == wanted, what=f"status {wanted}")


class Log:
    """How often the gateway said each thing until now. By count: a process that ends writes anywhere into the file."""

    def __init__(self, gateway: Gateway) -> None:
        self._path = gateway.log
        self._before = gateway.log.read_text()

    def says(self, words: str) -> None:
        """Waits until it says the words once more."""
        spelled = json.dumps(words)[1:-1]
        before = self._before.count(spelled)
        wait_until(lambda: self._path.read_text().count(spelled) > before, what=f"{words!r} in the log")


def test_a_rotated_key_is_taken_without_a_run_and_the_one_that_is_gone_no_more(
    gateway: Gateway, issuer: Issuer
) -> None:
    pids = gateway.processes
    assert (status(gateway, old()), status(gateway, new())) == (200, 401)
    issuer.answer = published(jwks("rsa", "P-256"))
    becomes(gateway, 200, new())
    assert status(gateway, old()) == 200, "both are valid while the issuer publishes both"
    issuer.answer = published(jwks("P-256"))
    becomes(gateway, 401, old())
    assert status(gateway, new()) == 200
    answer = ask(gateway, old())
    assert "no key of its issuer has this `kid`" in answer.json()["error"]["message"]
    assert status(gateway, token("ES256", "P-256", head={"kid": "other"})) == 401
    issuer.answer = published(jwks("rsa"))
    becomes(gateway, 200, old())
    assert gateway.processes == pids, "nothing was started anew"
    head = issuer.asked[-1].decode().lower().splitlines()
    assert head[0] == "get /keys?of=1 http/1.1" and f"host: {HOST}:{issuer.port}" in head


def test_keys_of_each_kind_come_while_it_runs_and_their_files_do_not_stay(gateway: Gateway, issuer: Issuer) -> None:
    issuer.answer = published(jwks("rsa", *CURVES))
    becomes(gateway, 200, new())
    for signer, algorithm in {"rsa": "PS384", "P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}.items():
        assert status(gateway, token(algorithm, signer)) == 200
        assert "its signature is wrong" in ask(gateway, token(algorithm, signer)[:-9]).text
    assert not list(Path(gateway.runtime.run_folder).glob("jwt-*"))


def test_another_key_under_the_same_id_takes_its_place(gateway: Gateway, issuer: Issuer) -> None:
    stranger = token(signer="stranger")
    assert status(gateway, stranger) == 401
    issuer.answer = published(jwks("stranger"))
    becomes(gateway, 200, stranger)
    assert "its signature is wrong" in ask(gateway, old()).text


def test_a_chunked_answer_is_read(gateway: Gateway, issuer: Issuer) -> None:
    body = jwks("rsa", "P-256")
    parts = (body[:100], body[100:], b"")
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    issuer.answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks
    becomes(gateway, 200, new())


def set_of(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


P256 = signers()["P-256"].jwk
#: What each answer is, and what the log says of it. In all that can be read in part the new key is the first.
HOSTILE: dict[str, tuple[bytes, str]] = {
    "an error": (published(jwks("P-256"), "500 Oops"), "answers with status 500"),
    "a redirect": (published(jwks("P-256"), "302 Found", "location: http://127.0.0.1:9/"), "answers with status 302"),
    "no HTTP": (b"hello\r\n\r\n" + jwks("P-256"), "answers with status 502"),
    "a page": (published(b"<html>"), "is no key set"),
    "nothing": (published(b""), "is no key set"),
    "cut off": (published(jwks("P-256", "rsa")[:-3]), "is no key set"),
    "more after it": (published(jwks("P-256") + b"{}"), "is no key set"),
    "no UTF-8": (published(jwks("P-256")[:-1] + b', "x": "\xff"}'), "is no key set"),
    "an object of keys": (published(b'{"keys": {"0": {}}}'), "is no key set"),
    "too deep": (published(set_of(P256, json.loads("[" * 60 + "]" * 60))), "is nested too deeply"),
    "no key": (published(set_of()), "has no key that HAProxy verifies with"),
    "secrets alone": (published(set_of({"kty": "oct", "kid": "P-256", "k": "AA"})), "has no key that"),
    "one id twice": (published(set_of(P256, signers()["rsa"].jwk, P256)), "has two keys with the id P-256"),
    "many": (published(set_of(P256, *({**P256, "kid": f"k{at}"} for at in range(64)))), "has more than 64 keys"),
    "long": (published(jwks("P-256") + b" " * (256 << 10)), "has more than 256 KiB"),
    "endless": (published(jwks("P-256")).replace(b"length: ", b"length: 9999999") + b" " * (2 << 20), "more than 256"),
    "a name in the log": (published(set_of(*[{**P256, "kid": 'a"b\\c'}] * 2)), 'has two keys with the id a"b\\c'),
}  # fmt: skip


def test_what_is_no_key_set_changes_nothing(gateway: Gateway, issuer: Issuer) -> None:
    for what, (answer, words) in HOSTILE.items():
        log = Log(gateway)
        issuer.answer = answer
        log.says(words)
        assert (status(gateway, old()), status(gateway, new())) == (200, 401), what
        log = Log(gateway)
        issuer.answer = published(jwks("rsa"))
        log.says("was read")
    issuer.answer = published(jwks("P-256"))
    becomes(gateway, 200, new())


def test_an_issuer_that_is_down_leaves_the_last_keys_and_comes_back(
    gateway: Gateway, issuer: Issuer, authority: tuple[Certificate, Path], tmp_path: Path
) -> None:
    issuer.answer = published(jwks("P-256"))
    becomes(gateway, 200, new())
    log = Log(gateway)
    issuer.down()
    log.says("answers with status 503; its last keys stay")
    assert (status(gateway, old()), status(gateway, new())) == (401, 200), "the last keys are not those of the last run"
    again = Issuer(tmp_path, authority[0], port=issuer.port)
    again.answer = published(jwks("rsa"))
    becomes(gateway, 200, old())
    again.down()


@pytest.mark.parametrize("name", ["other.example.org", "stranger"])
def test_who_has_no_certificate_for_the_issuers_name_is_not_believed(
    running: Gateway, authority: tuple[Certificate, Path], tmp_path: Path, name: str
) -> None:
    """Another's certificate of the same authority, and the right name by an authority of its own."""
    signer = certificate("authority") if name == "stranger" else authority[0]
    liar = Issuer(tmp_path, signer, HOST if name == "stranger" else name)
    liar.answer = published(jwks("P-256"))
    log = Log(running)
    running.change(jwt=plan_of(liar.url))
    log.says("answers with status 503")
    assert (status(running, old()), status(running, new())) == (200, 401)
    assert not liar.asked
    liar.down()


def test_without_tls_nobody_is_believed(running: Gateway) -> None:
    with socket.create_server((HOST, 0)) as plain:
        log = Log(running)
        running.change(jwt=plan_of(f"https://{HOST}:{plain.getsockname()[1]}/keys"))
        connection, _ = plain.accept()
        with connection:
            assert connection.recv(3)[:1] == b"\x16", "it begins with a handshake"
            connection.sendall(published(jwks("P-256")))
        log.says("answers with status 503")
    assert (status(running, old()), status(running, new())) == (200, 401)


def test_of_an_issuer_that_has_both_the_ipv4_address_is_asked(
    make_gateway: Make, authority: tuple[Certificate, Path], tmp_path: Path
) -> None:
    """The other one leads nowhere, as in pods, whose policies name IPv4 networks alone."""
    dns = Dns(["127.0.0.1"], {"issuer": "100::1"}).start()
    issuer = Issuer(tmp_path, authority[0], "issuer.test")
    issuer.answer = published(jwks("P-256"))
    at = {"jwks_interval_s": EVERY_S, "ca_file": str(authority[1]), "resolve_names": True}
    gateway = make_gateway(jwt=plan_of(f"https://issuer.test:{issuer.port}/keys"), dns=dns.port, at=at)
    becomes(gateway, 200, new())
    gateway.change(jwt=plan_of(None))
    issuer.down()
    dns.socket.close()


@pytest.mark.long(why="an answer has ten seconds")
def test_an_answer_that_never_ends_is_left_and_the_next_one_read(gateway: Gateway, issuer: Issuer) -> None:
    def drip(stream: ssl.SSLSocket) -> None:
        head, _, body = published(jwks("P-256") + b" " * 200).partition(b"\r\n\r\n")
        stream.sendall(head + b"\r\n\r\n")
        for byte in body:
            stream.sendall(bytes([byte]))
            time.sleep(0.1)

    log = Log(gateway)
    issuer.answer = drip
    log.says("is too slow; its last keys stay")
    assert (status(gateway, old()), status(gateway, new())) == (200, 401)
    issuer.answer = published(jwks("P-256"))
    becomes(gateway, 200, new())


# Two readers of key sets: Python for a run, Lua in the gateway.

READ = """
local own, read = loadfile('{lua}'), nil
read = own('{folder}', '{folder}')
for line in io.lines('{folder}/sets') do
  local text = line:gsub('%x%x', function(two) return string.char(tonumber(two, 16)) end)
  local ok, found = pcall(read, text)
  if not ok and type(found) ~= 'table' then error(found) end
  print(ok and 'keys' or 'refused ' .. found.why)
  for entry, key in pairs(ok and found or {{}}) do print(' ' .. entry .. ' ' .. key.pem:gsub('\\n', '#')) end
end
"""


def in_lua(folder: Path, sets: list[bytes]) -> list[dict[str, str] | str]:
    """What `jwks.lua` makes of each text in HAProxy's own Lua: PEMs by id and algorithm, or why it refuses it."""
    (folder / jwt.LUA).write_text(_own(jwt.LUA))
    (folder / jwt.MAP).write_text("")
    (folder / "sets").write_text("".join(f"{one.hex()}\n" for one in sets))
    (folder / "read.lua").write_text(READ.format(lua=folder / jwt.LUA, folder=folder))
    (folder / "read.cfg").write_text(f"global\n    lua-load {folder}/read.lua\n")
    command = [haproxy.find_binary(), "-c", "-f", str(folder / "read.cfg")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "has no error" in done.stdout, done.stderr
    found: list[dict[str, str] | str] = []
    for line in done.stdout.splitlines():
        if line == "keys":
            found.append({})
        elif line.startswith("refused "):
            found.append(line.removeprefix("refused "))
        elif line.startswith(" "):
            entry, _, pem = line[1:].partition(" ")
            assert isinstance(found[-1], dict)
            found[-1][entry] = pem.replace("#", "\n")
    return found


def in_python(text: bytes) -> dict[str, str] | None:
    try:
        found, _ = keys_of(text)
    except JwksError:
        return None
    return {f"{key.kid}|{algorithm}": key.pem for key in found for algorithm in key.algorithms} or None


def changed_texts() -> list[bytes]:
    """Key sets with a byte that another took the place of, or is gone, or is there twice."""
    chance = random.Random(17)
    whole = json.dumps(json.loads(jwks("P-256", "rsa", "P-384")), indent=1).replace('"use"', '"u\\u0073e"').encode()
    made = [whole]
    for _ in range(400):
        at = chance.randrange(len(whole))
        other = bytes([chance.choice(b'"{}[],:\\ 0aA_\n')])
        put = chance.choice([b"", whole[at : at + 1] * 2, other])
        made.append(whole[:at] + put + whole[at + 1 :])
    return made


def test_both_readers_of_key_sets_find_the_same_keys(tmp_path: Path) -> None:
    rsa = signers()["rsa"].jwk
    changes = [
        {"alg": "PS384"}, {"alg": None}, {"alg": "HS256"}, {"alg": "none"}, {"use": None}, {"use": False},
        {"use": "enc"}, {"kid": None}, {"kid": True}, {"kid": 7}, {"kid": ""}, {"kid": "a b"}, {"kid": "a|b"},
        {"kid": "a\n0"}, {"kid": "ä"}, {"kid": "a/b\\\""}, {"kid": "x" * 200}, {"kid": "x" * 201}, {"n": "AQAB"},
        {"n": "B" * 1370}, {"n": "A" * 1370 + "B" * 1365}, {"n": "AA" + str(rsa["n"])}, {"n": 7}, {"n": "a+b/"}, {"n": ""}, {"e": "AQ"},
        {"e": "AA"}, {"e": "Ag"}, {"e": "AQAAAAE"}, {"e": "AAAAAAEAAQ"}, {"e": "A"}, {"kty": "rsa"}, {"kty": None},
        {"kty": "EC"}, {"kty": "oct", "k": "AA"}, {"key_ops": ["verify"], "x5c": ["MII/+="], "n2": 1.5e3},
    ]  # fmt: skip
    sets = [set_of({**rsa, **change}, signers()["P-384"].jwk) for change in changes]
    sets += [set_of("text", None, [], rsa), set_of(rsa, rsa), b"[]", b"{}", b'{"keys":[]}', b"7", b"", b'{"keys":null}']
    sets += [b' {"keys" : [ ] , "a" : [ true , false , null , -1.5e3 , {} ] } ']
    sets += changed_texts()
    found = in_lua(tmp_path, sets)
    assert len(found) == len(sets)
    read = 0
    for text, lua in zip(sets, found, strict=True):
        python = in_python(text)
        if isinstance(lua, str):
            assert python is None, (text, lua)
            continue
        # Lua leaves it to OpenSSL whether a point is on its curve.
        loads = {entry: pem for entry, pem in lua.items() if "|ES" not in entry or is_key(pem)}
        assert loads == (python or {}), text
        read += 1
    assert read > 100, "most of them are no key sets"


def is_key(pem: str) -> bool:
    try:
        load_pem_public_key(pem.encode())
    except ValueError:
        return False
    return True
