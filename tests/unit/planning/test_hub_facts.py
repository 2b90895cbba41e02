"""Which token goes to which host when facts come from the Hub, and when no request is made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from modelfleet.infra.catalog import default_catalog
from tests.unit.listener import Listener, listening

ROOT = Path(__file__).parents[3]
#: The listener's answer to every request: the `config.json`, and the parameters that the Hub counted.
CONFIG: dict[str, Any] = {
    **default_catalog().models["meta-llama/Llama-3.2-1B-Instruct"].config,
    "safetensors": {"parameters": {"BF16": 1_235_814_400}},
}
#: Reads the facts of one model in its own process, like the command.
READ = """
import sys
from pathlib import Path
from modelfleet.infra.reading.models import read_facts
from tests.unit.planning.builders import model

facts = read_facts([model("org/gated")], Path(sys.argv[1]), network=True)[0]["org/gated"]
print(facts and facts.source)
"""


def read_in_a_process(folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "NO_PROXY": "*", **environment},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def tokens(hub: Listener) -> set[str | None]:
    """The tokens of the requests about the model."""
    return {authorization for path, authorization in hub.seen if "org/gated" in path}


def test_the_token_of_hf_auth_login_is_sent(tmp_path: Path) -> None:
    """Otherwise a gated model stays unknown to a logged-in user who may read it."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text("hf_from_login\n")
    with listening(CONFIG) as hub:
        found = read_in_a_process(tmp_path, HF_HOME=str(home), HF_ENDPOINT=hub.url())
    assert found == f"{hub.url()}/org/gated"
    assert tokens(hub) == {"Bearer hf_from_login"}


def test_no_request_is_made_offline(tmp_path: Path) -> None:
    with listening(CONFIG) as hub:
        found = read_in_a_process(tmp_path, HF_HOME=str(tmp_path), HF_ENDPOINT=hub.url(), HF_HUB_OFFLINE="true")
    assert (found, hub.seen) == ("None", [])


def test_a_token_does_not_follow_a_redirect_to_another_host(tmp_path: Path) -> None:
    """Otherwise a proxy at HF_ENDPOINT that redirects to a presigned URL would send the company's token to a bucket."""
    with listening(CONFIG) as other, listening(None, redirect_to=other.url("localhost")) as hub:
        found = read_in_a_process(tmp_path, HF_HOME=str(tmp_path), HF_ENDPOINT=hub.url(), HF_TOKEN="hf_secret")
    assert found == f"{hub.url()}/org/gated", "the file itself must be read from there"
    assert tokens(hub) == {"Bearer hf_secret"}
    assert tokens(other) == {None}
