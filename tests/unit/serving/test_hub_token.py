"""Each download reads the Hugging Face token again, so a changed Secret needs no new replica or pod."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from modelfleet.infra.kubernetes.manifests.ray import HUGGINGFACE_PATH, ray_cluster
from tests.cluster.fleet import five_models, planned

ROOT = Path(__file__).parents[3]

#: One process, like a replica's: two downloads, between which the file changes.
REPLICA = """
import os, sys
from modelfleet.serving.errors import WeightsError
from modelfleet.serving.hub import download
for token in ("hf_old", "hf_new"):
    new = os.environ["HF_TOKEN_PATH"] + ".new"
    open(new, "w").write(token + chr(10))
    os.replace(new, os.environ["HF_TOKEN_PATH"])  # the kubelet also swaps the file
    try:
        download("org/gated", None)
    except WeightsError as error:
        print(error)
"""


class Hub:
    """A Hub that grants nothing and records the tokens that it gets."""

    def __init__(self) -> None:
        self.seen: list[str | None] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/api/models/"):
                    hub.seen.append(self.headers.get("Authorization"))
                self.send_response(403)
                self.send_header("X-Error-Code", "GatedRepo")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Logs nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_changed_token_is_used_by_the_next_download_of_a_running_replica(hub: Hub, tmp_path: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server.server_address[1]}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", REPLICA], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is gated on the Hugging Face Hub") == 2, done.stdout
    assert list(dict.fromkeys(hub.seen)) == ["Bearer hf_old", "Bearer hf_new"]


def test_pods_mount_the_secret_as_a_file_and_name_it_to_the_hub(tmp_path: Path) -> None:
    """As a variable, or as a file by `subPath`, it would not change until the pod ends."""
    cluster = ray_cluster(planned(tmp_path, five_models()))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        (volume,) = (v for v in spec["volumes"] if v["name"] == "huggingface")
        assert volume["secret"] == {"secretName": "replica-huggingface", "optional": True}
        (container,) = spec["containers"]
        (mount,) = (m for m in container["volumeMounts"] if m["name"] == "huggingface")
        assert mount == {"name": "huggingface", "mountPath": HUGGINGFACE_PATH, "readOnly": True}
        variables = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert variables["HF_TOKEN_PATH"] == f"{HUGGINGFACE_PATH}/token"
        assert "HF_TOKEN" not in variables, "the variable would take precedence over the file"
