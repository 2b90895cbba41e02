"""How a kubeconfig becomes a connection, and the message if it does not: the client with a real HTTPS server."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.kubernetes import api
from modelfleet.infra.kubernetes.api import Api, ApiError, Unreachable
from modelfleet.infra.kubernetes.preflight import check_cluster
from modelfleet.serving.config.errors import SetupError
from tests.cluster.fleet import model, planned
from tests.unit.kubernetes.https_server import HttpsServer, certificate

L4 = {"name": "l4", "accelerator": "L4", "maxNodes": 3, "instanceTypes": ["g6.2xlarge"]}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., HttpsServer]]:
    started: list[HttpsServer] = []

    def start(**settings: Any) -> HttpsServer:
        started.append(HttpsServer(tmp_path, **settings))
        return started[-1]

    yield start
    for server in started:
        server.close()


def kubeconfig(path: Path, cluster: Any, user: Any = None, *, name: str = "c", **more: Any) -> str:
    """Writes a kubeconfig with one context; returns its path."""
    content = {
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user or {"token": "t"}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
        **more,
    }
    path.write_text(json.dumps(content))
    return str(path)


def plugin(folder: Path, script: str, **settings: Any) -> dict[str, Any]:
    """The user section of a kubeconfig that runs a shell script."""
    path = folder / "plugin"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": str(path), **settings}}


def nodes(source: str | None = None, context: str | None = None) -> list[str]:
    """Names of the nodes of a kubeconfig's cluster."""
    connection = Api.from_kubeconfig(source or os.environ["KUBECONFIG"], context)
    try:
        return [node["metadata"]["name"] for node in connection.list("v1", "Node")]
    finally:
        connection.close()


def why_not(source: str, context: str | None = None) -> str:
    with pytest.raises(Unreachable) as caught:
        nodes(source, context)
    assert "\n" not in str(caught.value)
    return str(caught.value)


CREDENTIAL = """\
echo '{"apiVersion": "client.authentication.k8s.io/v1beta1", "kind": "ExecCredential", "status": {"token": "'$AWS_PROFILE'"}}'
"""


def test_the_environment_of_a_kubeconfigs_command_reaches_it(tmp_path: Path, serve: Callable[..., HttpsServer]) -> None:
    """`aws eks update-kubeconfig --profile` writes AWS_PROFILE there; without it, `aws` runs as another user."""
    server = serve(token="production")
    user = plugin(tmp_path, CREDENTIAL, env=[{"name": "AWS_PROFILE", "value": "production"}])
    assert nodes(kubeconfig(tmp_path / "config", server.cluster(), user)) == ["one"]
    assert set(server.users) == {"Bearer production"}


def test_kubeconfig_can_name_several_files(
    tmp_path: Path, serve: Callable[..., HttpsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    kubeconfig(tmp_path / "a", {}, clusters=[], users=[])
    kubeconfig(tmp_path / "b", server.cluster(), contexts=[])
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'a'}:{tmp_path / 'missing'}:{tmp_path / 'b'}")
    assert nodes() == ["one"]


def test_the_first_file_decides_which_cluster_it_is(tmp_path: Path, serve: Callable[..., HttpsServer]) -> None:
    """As in kubectl and Pulumi. By the client's own rule, a run would read one cluster and change another."""
    first, second = serve(), serve()
    both = f"{kubeconfig(tmp_path / 'a', first.cluster(), name='a')}:{kubeconfig(tmp_path / 'b', second.cluster(), name='b')}"
    assert nodes(both) == ["one"]
    assert first.users and not second.users
    assert nodes(both, "b") == ["one"]
    assert second.users


def test_a_client_certificate_leaves_no_file_and_needs_no_linux(
    tmp_path: Path, serve: Callable[..., HttpsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)  # macOS has none
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    alice = certificate("alice")
    server = serve(client=alice)
    user = {
        "client-certificate-data": base64.b64encode(alice.certificate).decode(),
        "client-key-data": base64.b64encode(alice.key).decode(),
    }
    modes: list[int] = []

    load = ssl.SSLContext.load_cert_chain

    def look(self: ssl.SSLContext, certificate: str, key: str) -> None:
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in (Path(key), Path(key).parent))
        load(self, certificate, key)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", look)
    assert nodes(kubeconfig(tmp_path / "config", server.cluster(), user)) == ["one"]
    assert "alice" in server.users
    assert modes == [0o600, 0o700], "others could read the key"
    assert list((tmp_path / "temporary").rglob("*")) == [], "a key or a guessable discovery cache is left"


def test_threads_that_open_one_kubeconfig_at_once_do_not_take_each_others_files(tmp_path: Path) -> None:
    """The client remembers files by content for the whole process: one thread read what another was removing."""
    authority = base64.b64encode(certificate("c").certificate).decode()
    source = kubeconfig(tmp_path / "c", {"server": "https://127.0.0.1:1", "certificate-authority-data": authority})
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: api.open_kubeconfig(source), range(60)))
    assert len(opened) == 60


def test_the_authority_of_an_eks_cluster_is_trusted_by_python_3_13_too(
    tmp_path: Path, serve: Callable[..., HttpsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no key identifiers (kubernetes-client/python#2394), as the server's here has none."""
    made = ssl.create_default_context

    def as_python_3_13(**settings: Any) -> ssl.SSLContext:
        context = made(**settings)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", as_python_3_13)
    assert nodes(kubeconfig(tmp_path / "config", serve().cluster())) == ["one"]


def test_a_command_that_is_not_installed_is_named(tmp_path: Path) -> None:
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "kubelogin"}}
    path = kubeconfig(tmp_path / "config", {"server": "https://127.0.0.1:1"}, user)
    assert why_not(path) == f"the kubeconfig {path}: its command kubelogin failed: it is not installed"


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    user = plugin(tmp_path, "echo 'The SSO session has expired.' >&2; exit 255")
    text = why_not(kubeconfig(tmp_path / "config", {"server": "https://127.0.0.1:1"}, user))
    assert text.endswith(
        f"its command {tmp_path / 'plugin'} failed: exec: process returned 255. The SSO session has expired."
    )


def test_a_command_that_fails_on_a_terminal_prints_its_reason_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client then passes the terminal on, and its own message about the failure is a TypeError's."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with (tmp_path / "terminal").open("w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(sys, "stdin", subprocess.DEVNULL)
        text = why_not(
            kubeconfig(tmp_path / "config", {"server": "https://127.0.0.1:1"}, plugin(tmp_path, "echo why >&2; exit 1"))
        )
    assert text.endswith("plugin failed: see above")
    assert (tmp_path / "terminal").read_text() == "why\n"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"contexts": []}, "contexts has no 'c', only none", id="context"),
        pytest.param({"clusters": [{"name": "d"}, {"name": "e"}]}, "clusters has no 'c', only d, e", id="cluster"),
        pytest.param({"users": [{"name": "d"}]}, "users has no 'c', only d", id="user"),
        pytest.param({"users": "nobody"}, "Invalid kube-config file. Expected key name", id="not-a-list"),
    ],
)
def test_a_missing_part_of_a_kubeconfig_is_named_with_its_file(tmp_path: Path, change: Any, expected: str) -> None:
    path = kubeconfig(tmp_path / "config", {"server": "https://127.0.0.1:1"}, **change)
    assert f"the kubeconfig {path} cannot be used: {expected}" in why_not(path)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        pytest.param(
            {"tokenFile": "/nowhere/token"}, "cannot be read: No such file or directory: /nowhere/token", id="a"
        ),
        pytest.param({"client-certificate": "/nowhere/c"}, "cannot be used: File does not exist: /nowhere/c", id="b"),
        pytest.param({"client-certificate-data": "QQ==", "client-key-data": "QQ=="}, "cannot be used: [SSL]", id="c"),
        pytest.param({"client-certificate-data": "Q"}, "cannot be used: ", id="d"),
    ],
)
def test_an_error_names_the_file_that_a_kubeconfig_points_to(tmp_path: Path, user: Any, expected: str) -> None:
    assert expected in why_not(kubeconfig(tmp_path / "config", {"server": "https://127.0.0.1:1"}, user))


@pytest.mark.parametrize("url", ["nonsense", "socks5://127.0.0.1:1", "ftp://127.0.0.1"])
@pytest.mark.filterwarnings("ignore:SOCKS support in urllib3")
def test_an_unusable_proxy_is_a_fault_of_the_kubeconfig(tmp_path: Path, url: str) -> None:
    path = kubeconfig(tmp_path / "config", {"server": "https://127.0.0.1:1", "proxy-url": url})
    assert f"the kubeconfig {path} cannot be used: " in why_not(path)


def test_a_folder_is_not_a_kubeconfig(tmp_path: Path) -> None:
    assert why_not(str(tmp_path)) == f"the kubeconfig {tmp_path} cannot be read: Is a directory: {tmp_path}"


def test_expired_credentials_are_reported(
    tmp_path: Path, serve: Callable[..., HttpsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kubeconfig(tmp_path / "config", serve(token="new").cluster(), {"token": "old"})
    with pytest.raises(ApiError) as caught:
        nodes(path)
    assert (caught.value.code, caught.value.message) == (401, "Unauthorized")
    monkeypatch.setenv("KUBECONFIG", path)
    with pytest.raises(SetupError, match=r"refused the credentials of \$KUBECONFIG; log in again") as said:
        check_cluster(planned(tmp_path / "root", [model("org/one", "L4")], pools=[L4], target="kubernetes"))
    assert said.value.exit_code == 2


@pytest.mark.parametrize("answer", ["<html>Welcome</html>", {"hello": "world"}, []])
def test_a_server_that_is_not_kubernetes_is_reported(
    tmp_path: Path, serve: Callable[..., HttpsServer], answer: Any
) -> None:
    server = serve()
    server.answers |= {"/version": answer, "/apis": answer}
    assert why_not(kubeconfig(tmp_path / "config", server.cluster())) == (
        f"{server.url} answers, but is not a Kubernetes API"
    )


def test_a_kind_that_the_cluster_lacks_is_an_error_for_a_list_and_nothing_for_a_get(
    tmp_path: Path, serve: Callable[..., HttpsServer]
) -> None:
    connection = Api.from_kubeconfig(kubeconfig(tmp_path / "config", serve().cluster()))
    with pytest.raises(ApiError, match=r"the cluster has no RayService in ray\.io/v1; is its operator installed"):
        connection.list("ray.io/v1", "RayService")
    assert connection.get("ray.io/v1", "RayService", "fleet", "default") is None
    connection.close()


def test_a_silent_address_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "TIMEOUT_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        assert f"no Kubernetes API answers at {url}: " in why_not(kubeconfig(tmp_path / "config", {"server": url}))


def test_this_machine_is_reached_without_a_proxy(
    tmp_path: Path, serve: Callable[..., HttpsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in kubectl: a kind or minikube cluster must be found even if a company's proxy is set."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "example.com")
    assert nodes(kubeconfig(tmp_path / "config", serve().cluster())) == ["one"]


def test_commands_that_use_no_cluster_do_not_load_the_client() -> None:
    """Loading it takes most of a second."""
    program = """if True:
        import sys
        from modelfleet.cli.main import main
        for arguments in ("--help", "check models --stack local", "plan --stack local", "up --help"):
            sys.argv = ["modelfleet", *arguments.split()]
            try:
                main()
            except SystemExit as end:
                assert not end.code, arguments
        import modelfleet.cli.up
        print("kubernetes" in sys.modules)
    """
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"
    assert " files: " in run.stderr and "Pools of stack local" in run.stdout
