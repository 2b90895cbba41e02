"""Makes files that nobody would write: real ones with changed bytes, lines and values, and YAML made of parts."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import strategies as st

REAL = [path.read_bytes() for path in sorted((Path(__file__).parent / "rayllm").glob("*.yaml"))]

NASTY = [
    b"", b"~", b"null", b"{}", b"[]", b"-1", b"0", b"1e999", b".inf", b"-.inf", b".nan", b"0x" + b"f" * 400,
    b"9" * 5000, b"010", b"190:20:30", b"2024-01-01", b"2024-13-45", b"yes", b"!!python/object/apply:os.system [x]",
    b"!!python/name:os.system", b"!!binary aGk=", b"!!set {a}", b"!!omap [a: 1]", b"!x y", b"&a [*a]", b"&a {<<: *a}",
    b"*a", b"<<: *a", b"'\\0'", b'"\\0"', b'"\\ud800"', b'"\\e[31m"', b'"\\u202e"', b"\x00", b"\xff", b"\x1b[2J",
    b"|\n x", b">-\n x", b"? [a]", b"- - - a", b"[" * 60, b"{a: " * 60, b"\t", b"%YAML 9.9", b"---", b"...", b"=",
    b"{instruction}", b"'{instruction!r}'", b"'{0}'", b"'{'", b"'}'", b"'{instruction.__class__}'", b"'{:{}}'",
    b"{bucket_uri: 's3://'}", b"{HF_TOKEN: x}", b"a" * 3000, "é 中 \N{PILE OF POO}".encode(), b"[[1, [2, [3]]]]",
    b"{engine_config: {engine_config: {}}}", b"{1: 2, true: 3, null: 4}", b"[{a: b}, c, 1]",
]  # fmt: skip

KEYS = [
    "deployment_config", "autoscaling_config", "min_replicas", "max_replicas", "target_ongoing_requests",
    "smoothing_factor", "max_concurrent_queries", "max_ongoing_requests", "ray_actor_options", "resources",
    "accelerator_type_a10", "accelerator_type:L4", "engine_config", "model_id", "hf_model_id", "type", "engine_kwargs",
    "quantization", "dtype", "max_num_seqs", "compilation_config", "swap_space", "scheduler", "policy",
    "max_total_tokens", "model_init_kwargs", "generation", "prompt_format", "system", "user", "assistant",
    "trailing_assistant", "system_in_user", "stopping_sequences", "generate_kwargs", "do_sample", "runtime_env",
    "env_vars", "pip", "s3_mirror_config", "bucket_uri", "s3_sync_args", "gcs_mirror_config", "azure_mirror_config", "lora", "scaling_config",
    "num_workers", "num_gpus_per_worker", "placement_strategy", "resources_per_worker", "multiplex_config",
    "model_config", "enabled", "<<", "", "a b", "config", "modelfleet:models", "modelfleet:pools", "modelfleet:target",
]  # fmt: skip

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(KEYS),
    st.sampled_from(["VLLMEngine", "TRTLLMEngine", "EmbeddingEngine", "TextGenerationInferenceEngine"]),
    st.sampled_from(["{instruction}", "{system}{instruction}"]),
    st.sampled_from([10**30, -(10**30), 1e308, "0.001", "1", "yes"]),
)  # fmt: skip
structures = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=8)), inner, max_size=6),
    ),
    max_leaves=25,
)


def mutated(seed: int, real: list[bytes] = REAL) -> bytes:
    """A real file after one to six random changes; the same seed gives the same file."""
    random_ = random.Random(seed)
    raw = random_.choice(real)
    for _ in range(random_.randint(1, 6)):
        raw = random_.choice([_bytes, _value, _value, _lines, _indent, _splice, _insert])(raw, random_, real)
    return raw[:60_000]


def _bytes(raw: bytes, random_: random.Random, _: list[bytes]) -> bytes:
    at = random_.randrange(len(raw) + 1)
    return raw[:at] + bytes([random_.randrange(256)]) + raw[at + random_.randint(0, 2) :]


def _value(raw: bytes, random_: random.Random, _: list[bytes]) -> bytes:
    lines = raw.split(b"\n")
    at = random_.randrange(len(lines))
    key, colon, _old = lines[at].partition(b":")
    lines[at] = key + (colon or b":") + b" " + random_.choice(NASTY)
    return b"\n".join(lines)


def _lines(raw: bytes, random_: random.Random, _: list[bytes]) -> bytes:
    lines = raw.split(b"\n")
    start = random_.randrange(len(lines))
    stop = min(len(lines), start + random_.randint(1, 5))
    part = lines[start:stop]
    action = random_.randrange(3)
    if action == 0:
        del lines[start:stop]
    elif action == 1:
        lines[start:stop] = part * 2
    else:
        to = random_.randrange(len(lines))
        lines[to:to] = part
    return b"\n".join(lines)


def _indent(raw: bytes, random_: random.Random, _: list[bytes]) -> bytes:
    lines = raw.split(b"\n")
    at = random_.randrange(len(lines))
    lines[at] = random_.choice([b"  " + lines[at], lines[at].lstrip(), b"- " + lines[at], b"# " + lines[at]])
    return b"\n".join(lines)


def _splice(raw: bytes, random_: random.Random, real: list[bytes]) -> bytes:
    other = random_.choice(real)
    return raw[: random_.randrange(len(raw) + 1)] + other[random_.randrange(len(other)) :]


def _insert(raw: bytes, random_: random.Random, _: list[bytes]) -> bytes:
    lines = raw.split(b"\n")
    at = random_.randrange(len(lines))
    indent = len(lines[at]) - len(lines[at].lstrip())
    key = random_.choice(KEYS).encode()
    lines.insert(at, b" " * indent + key + b": " + random_.choice(NASTY))
    return b"\n".join(lines)
