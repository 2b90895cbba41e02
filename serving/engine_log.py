"""What vLLM says about its start and its memory in its own log. Pure but for reading the files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

#: Lines of vLLM 0.32.0: `v1/worker/gpu_model_runner.py`, `gpu_worker.py`, `v1/core/kv_cache_utils.py`,
#: `compilation/backends.py`, `v1/engine/core.py`. Seconds, GiB, tokens.
PATTERNS = {
    "download_s": r"Time spent downloading weights for .*?: ([\d.]+) seconds",
    "weights_gib": r"Model loading took ([\d.]+) GiB",
    "load_s": r"Model loading took [\d.]+ GiB memory and ([\d.]+)",
    "compile_s": r"torch\.compile took ([\d.]+) s in total",
    "kv_gib": r"Available KV cache memory: ([\d.]+) GiB",
    "kv_tokens": r"\w+ KV cache size: ([\d,]+) tokens",
    "graphs_gib": r"CUDA graph pool memory: ([\d.]+) GiB \(actual\)",
    "consumed_gib": r"Actual usage is ([\d.]+) GiB for consumed memory",
    "peak_gib": r"([\d.]+) GiB for peak activation",
    "graphs_s": r"Graph capturing finished in ([\d.]+) secs",
    "init_s": r"init engine \(profile, create kv cache, warmup model\) took ([\d.]+)",
}
PART = re.compile(r"([A-Za-z'][A-Za-z' ]*?) ([\d.]+) s(?:,|$)")


def engine_facts(text: str) -> dict[str, float]:
    """The figures in a log; the last line of each kind counts, and what it does not say is left out."""
    found = {}
    for name, pattern in PATTERNS.items():
        if matches := re.findall(pattern, text):
            found[name] = float(matches[-1].replace(",", ""))
    return found


#: The parts of a start in their order, each with the key of its seconds and the line with which it begins.
PARTS = (
    ("download", "download_s", None),
    ("load", "load_s", r"Starting to load model|Loading model from scratch"),
    ("compile", "compile_s", r"Starting torch\.compile"),
    ("graphs", "graphs_s", r"Capturing CUDA graphs|Profiling CUDA graph memory"),
)


def start_parts(text: str) -> str:
    """`load 3 s, compile 25 s, graphs now`: the parts of a start that a log tells so far, and the one that goes on.

    A part that the log never tells of, such as graphs without a card, is left out, and none goes on once the engine is
    there; empty before the first.
    """
    said, done = [], engine_facts(text)
    for name, key, begins in PARTS:
        if key in done:
            said.append(f"{name} {done[key]:.0f} s")
        elif begins and "init_s" not in done and re.search(begins, text):
            said.append(f"{name} now")
    return ", ".join(said)


def replica_parts(line: str) -> dict[str, float]:
    """The seconds of each part from the replica's own line (`serving/startup.py`)."""
    _, _, parts = line.partition(": ")
    return {name.strip(): float(seconds) for name, seconds in PART.findall(parts)}


def text_of(places: Iterable[Path]) -> str:
    """The text of log files and of all such files below folders: Ray keeps one a process."""
    files: set[Path] = set()
    for place in places:
        # Not through `session_latest` alone: Ray writes the same files under the session's own name.
        files |= (
            {place} if place.is_file() else {one for one in place.rglob("*") if one.suffix in (".log", ".err", ".out")}
        )
    return "\n".join(one.read_text(errors="replace") for one in sorted(files) if one.is_file())
