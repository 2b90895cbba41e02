"""Compares the facts with a second source: EC2's own data, as moto ships it, and the installed vLLM."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelfleet.infra.catalog import CatalogModel, Price, default_catalog
from modelfleet.infra.planning.facts import facts_from_config
from modelfleet.infra.planning.memory.checkpoint import Checkpoint

CATALOG = default_catalog()
#: The models of 2026 that a fleet may not lack: the most downloaded, the newest, and one of each kind of memory.
NOT_MISSING = (
    "Qwen/Qwen3.6-27B", "Qwen/Qwen3.6-35B-A3B", "Qwen/Qwen3.8-27B", "Qwen/Qwen3.8-Flash-Next", "Qwen/Qwen3.5-9B",
    "Qwen/Qwen3-0.6B", "openai/gpt-oss-20b", "openai/gpt-oss-120b", "google/gemma-4-26B-A4B-it",
    "google/gemma-4-31B-it", "google/gemma-4-E4B-it", "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.3-70B-Instruct", "zai-org/GLM-5.3-Flash", "zai-org/GLM-5.2", "zai-org/GLM-4.7-Flash",
    "deepseek-ai/DeepSeek-V4-Flash-0731", "deepseek-ai/DeepSeek-R1-0528", "moonshotai/Kimi-K3",
    "MiniMaxAI/MiniMax-M3", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "mistralai/Mistral-Small-4-119B-2603",
    "Qwen/Qwen3-VL-8B-Instruct", "BAAI/bge-m3", "Qwen/Qwen3-Reranker-0.6B",
)  # fmt: skip
FOLDER = Path(__file__).parents[3] / "infra" / "catalog"


def moto_types() -> dict[str, dict]:  # type: ignore[type-arg]
    """EC2's DescribeInstanceTypes, as moto keeps it."""
    return importlib.import_module("moto.ec2.models.instance_types").INSTANCE_TYPES  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", sorted(CATALOG.instance_types))
def test_specs_agree_with_ec2s_describe_instance_types(name: str) -> None:
    ours, theirs = CATALOG.instance_types[name], moto_types()[name]
    assert ours.vcpus == theirs["VCpuInfo"]["DefaultVCpus"]
    assert ours.memory_mib == theirs["MemoryInfo"]["SizeInMiB"]
    gpus = theirs.get("GpuInfo", {}).get("Gpus", [])
    assert ours.gpus == sum(gpu["Count"] for gpu in gpus)
    if gpus:
        accelerator = CATALOG.accelerators[ours.accelerator]
        assert (accelerator.ec2_gpu, accelerator.memory_mib) == (gpus[0]["Name"], gpus[0]["MemoryInfo"]["SizeInMiB"])
    assert ours.nvme_gb == theirs.get("InstanceStorageInfo", {}).get("TotalSizeInGB", 0)


#: EC2 sells these in Capacity Blocks only, so they have no on-demand price.
CAPACITY_BLOCKS_ONLY = {"p5e.48xlarge"}


def test_every_accelerator_has_instance_types_and_prices() -> None:
    for name in (*CATALOG.accelerators, "CPU"):
        types = [one.name for one in CATALOG.instance_types_with(name)]
        assert types, name
        sold = [one for one in types if one not in CAPACITY_BLOCKS_ONLY]
        assert all(CATALOG.usd_per_hour(one, region="us-east-1") for one in sold), name


def test_prices_of_the_facts_sheet() -> None:
    assert CATALOG.usd_per_hour("g5.xlarge", region="us-east-1") == 1.006
    assert CATALOG.usd_per_hour("p4de.24xlarge", region="us-east-1") == pytest.approx(27.44705, abs=1e-4)
    assert CATALOG.prices["us-east-1", "g5.xlarge"].date == "2026-07-20"


@pytest.mark.parametrize("name", ["g5.tiny", "g5.xlarge", "nat-gateway"])
def test_a_missing_price_is_none_and_never_zero(name: str) -> None:
    assert CATALOG.usd_per_hour(name, region="eu-central-1") is None


def test_the_control_plane_costs_the_same_everywhere() -> None:
    assert CATALOG.usd_per_hour("eks-cluster", region="eu-central-1") == 0.10


def test_fetched_prices_add_to_the_catalogs() -> None:
    price = Price(1.0, "2026-11-24", "test")
    more = CATALOG.with_prices({("eu-west-1", "g5.xlarge"): price, ("eu-west-1", "nat-gateway"): price})
    assert more.usd_per_hour("g5.xlarge", region="eu-west-1") == 1.0
    assert more.usd_per_hour("nat-gateway", region="eu-west-1") == 1.0
    assert CATALOG.usd_per_hour("g5.xlarge", region="eu-west-1") is None, "the catalog itself is not changed"


def test_daemon_sets_request_more_on_gpu_nodes() -> None:
    """aws-node 50, kube-proxy 100, EBS 30, monitoring 10, spare 50; DCGM 100 on GPU nodes."""
    assert CATALOG.daemon_requests(gpu=False) == (240, 278)
    assert CATALOG.daemon_requests(gpu=True) == (340, 406)


def test_every_table_names_its_source() -> None:
    for path in FOLDER.glob("*.csv"):
        first = path.read_text("utf-8").splitlines()[0]
        assert first.startswith("# "), path.name
        assert "ource" in first or "Looked up" in first or "requires of a GPU" in first, path.name


def test_every_model_row_has_its_source_and_date() -> None:
    assert all(row.source and row.date for row in CATALOG.models.values())
    assert all(row.shape_source for row in CATALOG.models.values() if row.config is not None)


def test_a_shape_from_memory_says_what_it_was_compared_with() -> None:
    """A wrong width buys the wrong node: who reads the row must see how far it can be trusted."""
    written = {row.shape_source for row in CATALOG.models.values() if "memory" in row.shape_source}
    assert written
    assert [text for text in written if not re.search(r"compared|no copy of it was found|equal vLLM", text)] == []


def test_the_catalog_knows_what_people_serve() -> None:
    planned = {row.hf_id for row in CATALOG.models.values() if row.config is not None}
    assert len(planned) >= 150
    assert set(NOT_MISSING) <= planned


@pytest.mark.parametrize(
    "row", [r for r in CATALOG.models.values() if r.config and r.total_b and not Checkpoint(r.config).quantization],
    ids=lambda row: str(row.hf_id),
)  # fmt: skip
def test_a_shape_has_as_many_parameters_as_its_maker_says(row: CatalogModel) -> None:
    """Names round, towers are estimated, and a tied head counts once: one tenth, and 0.25 billion for small models."""
    facts = facts_from_config(row.config or {}, "test", CATALOG)
    assert facts.parameters / 1e9 + facts.encoder_bytes / 2e9 == pytest.approx(row.total_b, rel=0.12, abs=0.45)


#: Their own config.json names fewer positions than their maker, and the file is what vLLM reads.
SHORTER_FILES = {"nvidia/MiniMax-M2.7-NVFP4", "stepfun-ai/Step-3.5-Flash"}


@pytest.mark.parametrize("row", [r for r in CATALOG.models.values() if r.config and r.max_context])
def test_a_model_takes_as_many_tokens_as_its_maker_says(row: CatalogModel) -> None:
    """A family's shape is shared, its length is not: a coder of 262,144 tokens was refused above 40,960."""
    assert row.config is not None and row.max_context is not None
    longest = Checkpoint(row.config, CATALOG.architecture_defaults).longest
    assert longest >= row.max_context or row.hf_id in SHORTER_FILES


def test_importing_the_catalog_reads_no_table() -> None:
    script = (
        "import pathlib, sys\n"
        "real = pathlib.Path.open\n"
        "def opened(path, *a, **k):\n"
        "    assert path.suffix != '.csv', path\n"
        "    return real(path, *a, **k)\n"
        "pathlib.Path.open = opened\n"
        "import modelfleet.infra.catalog\n"
        "try:\n"
        "    modelfleet.infra.catalog.default_catalog()\n"
        "except AssertionError:\n"
        "    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr or "the tables were not read with Path.open, so this test sees nothing"


@pytest.mark.slow
def test_compute_capabilities_are_those_of_the_installed_vllm() -> None:
    """`get_min_capability` of each quantization method: 75 is 7.5."""
    quantization = importlib.import_module("vllm.model_executor.layers.quantization")
    known = set(quantization.QUANTIZATION_METHODS)
    for method, row in CATALOG.quantizations.items():
        assert method in known, f"{method} is gone"
        least = quantization.get_quantization_config(method).get_min_capability()
        assert divmod(least, 10) == row.min_compute_capability, method
