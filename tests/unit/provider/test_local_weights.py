"""Weights for a card, from the Hub into the node's own cache: with the user's token, and after a break."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfleet.infra.local.provider.ray import ray_environment
from modelfleet.infra.planning import plan
from modelfleet.infra.planning.cards import Card, Gpus
from modelfleet.infra.planning.local import Machine
from modelfleet.infra.reading.machine import _weights_in
from modelfleet.serving.hub import remove_left
from tests.hub import Hub, hub_of
from tests.unit.planning.builders import CODE, model, pool, stack
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
L4 = Gpus(cards=(Card("GPU-a", "NVIDIA L4", 23034, (8, 9)),), driver="580.65.06")
#: huggingface_hub writes pieces of 10 MiB (2.4 `constants.DOWNLOAD_CHUNK_SIZE`).
PIECE = 10 * 2**20
SIZE, HELD = 3 * PIECE, 2 * PIECE + 1000
#: What a replica does where the plan has no mirror (`serving/weights.py`).
REPLICA = """
import sys
sys.path.insert(0, sys.argv[1])
from modelfleet.serving.hub import download
print(download("org/a", None))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    files = tmp_path / "repository"
    files.mkdir()
    (files / "config.json").write_text("{}")
    (files / "model.safetensors").write_bytes(os.urandom(SIZE))
    with hub_of("org/a", files) as made:
        yield made


@pytest.fixture
def user(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of nobody else's; returns the Hub's cache in it."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path / "home" / ".cache" / "huggingface" / "hub"


def replica_environment() -> dict[str, str]:
    """A replica's, as the local Ray of a stack on this card gives it."""
    made = plan([model("org/a")], stack(pool(maxNodes=1), target="local"), code=CODE, machine=Machine(1 << 36, L4))
    assert made.cards and made.models[0].mirror.prefix is None, "nothing is copied to the bucket in memory"
    return ray_environment({"HF_HUB_OFFLINE": "1", **dict(made.cards.environment)})


def replica() -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", REPLICA, str(ROOT)]
    return subprocess.Popen(
        command, env=replica_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_connection_that_breaks_goes_on_at_its_byte_in_the_nodes_own_cache(hub: Hub, user: Path) -> None:
    hub.held_after, hub.cuts = HELD, 1
    said, errors = replica().communicate(timeout=120)
    folder = Path(said.strip())
    assert folder.is_relative_to(user), errors
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"].read_bytes()
    wanted = [wanted for name, wanted in hub.asked if name == "model.safetensors"]
    assert wanted[0] is None and wanted[1] in (f"bytes={PIECE}-", f"bytes={2 * PIECE}-", f"bytes={HELD}-"), wanted


def test_after_a_killed_start_whole_files_stay_and_the_rest_of_others_is_removed(hub: Hub, user: Path) -> None:
    """huggingface_hub 2 begins a file that it had half anew, under another name; the half stayed for ever."""
    blobs, hub.held_after = user / "models--org--a" / "blobs", HELD
    first = replica()

    def half() -> list[Path]:
        return [one for one in blobs.glob("*.incomplete") if one.stat().st_size >= PIECE]

    try:
        wait_until(lambda: half() and (blobs / hub.hashes["config.json"]).exists(), what="one and a half files")
    finally:
        first.kill()
        first.communicate()
    (left,) = half()
    assert dict(_weights_in(user))["org/a"] < PIECE, "what begins anew needs its room once more"
    os.utime(left, (1, 1))
    hub.held_after = None
    hub.asked.clear()
    said, errors = replica().communicate(timeout=120)
    assert (Path(said.strip()) / "config.json").is_file(), errors
    assert [name for name, _ in hub.asked] == ["model.safetensors"]
    assert not left.exists()


def test_a_file_that_another_download_writes_now_is_left_alone(tmp_path: Path) -> None:
    written, left = tmp_path / "a.1.incomplete", tmp_path / "b.2.incomplete"
    for one in (written, left, tmp_path / "c"):
        one.touch()
    os.utime(left, (1, 1))
    remove_left(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.1.incomplete", "c"]


def test_the_login_of_the_hubs_own_command_counts_and_a_token_in_the_environment_more(
    hub: Hub, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [str(Path(sys.executable).parent / "hf"), "auth", "login", "--token", "hf_login"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    hub.tokens.clear()
    said, errors = replica().communicate(timeout=120)
    assert Path(said.strip()).is_dir() and hub.tokens == {"Bearer hf_login"}, errors
    monkeypatch.setenv("HF_TOKEN", "hf_variable")
    hub.tokens.clear()
    said, errors = replica().communicate(timeout=120)
    assert Path(said.strip()).is_dir() and hub.tokens == {"Bearer hf_variable"}, errors
