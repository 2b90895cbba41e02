"""The facts against a second source: EC2's own data as moto ships it, and the installed vLLM."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest

from infra.catalog import NoPrice, Price, UnknownInstanceType, default_catalog
from tools.catalog.fetch_ec2 import prices, tables

CATALOG = default_catalog()
FOLDER = Path(__file__).parents[3] / "infra" / "catalog"


def moto_types() -> dict[str, dict]:  # type: ignore[type-arg]
    """EC2's DescribeInstanceTypes, as moto keeps it."""
    return importlib.import_module("moto.ec2.models.instance_types").INSTANCE_TYPES  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", sorted(CATALOG.instance_types))
def test_specs_agree_with_ec2s_describe_instance_types(name: str) -> None:
    ours, theirs = CATALOG.instance_type(name), moto_types()[name]
    assert ours.vcpus == theirs["VCpuInfo"]["DefaultVCpus"]
    assert ours.memory_mib == theirs["MemoryInfo"]["SizeInMiB"]
    gpus = theirs.get("GpuInfo", {}).get("Gpus", [])
    assert ours.gpus == sum(gpu["Count"] for gpu in gpus)
    if gpus:
        assert ours.gpu_memory_mib == gpus[0]["MemoryInfo"]["SizeInMiB"]
        assert ours.accelerator.startswith(gpus[0]["Name"])
    assert ours.nvme_gb == theirs.get("InstanceStorageInfo", {}).get("TotalSizeInGB", 0)


def test_every_accelerator_has_instance_types_and_prices() -> None:
    for name in (*CATALOG.accelerators, "CPU"):
        types = CATALOG.instance_types_with(name)
        assert types, name
        assert all(CATALOG.usd_per_hour(one.name, region="us-east-1") > 0 for one in types)


def test_prices_of_the_facts_sheet() -> None:
    assert CATALOG.usd_per_hour("g5.xlarge", region="us-east-1") == 1.006
    assert CATALOG.usd_per_hour("p4de.24xlarge", region="us-east-1") == pytest.approx(27.44705, abs=1e-4)
    assert CATALOG.price("g5.xlarge", region="us-east-1").date == "2026-07-20"


def test_unknown_and_missing_raise_and_are_never_zero() -> None:
    with pytest.raises(UnknownInstanceType):
        CATALOG.instance_type("g5.tiny")
    with pytest.raises(NoPrice):
        CATALOG.usd_per_hour("g5.xlarge", region="eu-central-1")
    with pytest.raises(NoPrice):
        CATALOG.service_price("nat-gateway", region="eu-central-1")


def test_the_control_plane_costs_the_same_everywhere() -> None:
    assert CATALOG.service_price("eks-cluster", region="eu-central-1").usd_per_hour == 0.10


def test_fetched_prices_go_to_their_tables() -> None:
    price = Price(1.0, "2026-11-24", "test")
    more = CATALOG.with_prices({("eu-west-1", "g5.xlarge"): price, ("eu-west-1", "nat-gateway"): price})
    assert more.usd_per_hour("g5.xlarge", region="eu-west-1") == 1.0
    assert more.service_price("nat-gateway", region="eu-west-1").usd_per_hour == 1.0
    assert not CATALOG.knows_price("g5.xlarge", region="eu-west-1"), "the catalog itself is not changed"


def test_daemon_sets_of_gpu_nodes_ask_for_more() -> None:
    """aws-node 50, kube-proxy 100, EBS 30, monitoring 10, spare 50; DCGM 100 on GPU nodes."""
    assert CATALOG.daemon_requests(gpu=False) == (240, 278)
    assert CATALOG.daemon_requests(gpu=True) == (340, 406)


def test_every_table_says_where_it_is_from() -> None:
    for path in FOLDER.glob("*.csv"):
        first = path.read_text("utf-8").splitlines()[0]
        assert first.startswith("# "), path.name
        assert "ource" in first or "Looked up" in first or "asks of a GPU" in first, path.name


def test_every_model_row_has_its_source() -> None:
    assert all(row.source.startswith("https://huggingface.co/") for row in CATALOG.models.values())


def test_importing_the_catalog_reads_no_file() -> None:
    import subprocess
    import sys

    script = (
        "import sys, builtins, io\n"
        "import pathlib\n"
        "real = pathlib.Path.open\n"
        "pathlib.Path.open = lambda *a, **k: (_ for _ in ()).throw(AssertionError('read'))\n"
        "import infra.catalog\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.slow
def test_compute_capabilities_are_those_of_the_installed_vllm() -> None:
    """`get_min_capability` of each quantization method: 75 is 7.5."""
    quantization = importlib.import_module("vllm.model_executor.layers.quantization")
    known = set(quantization.QUANTIZATION_METHODS)
    for method, row in CATALOG.quantizations.items():
        assert method in known, f"{method} is gone"
        least = quantization.get_quantization_config(method).get_min_capability()
        assert divmod(least, 10) == row.min_compute_capability, method


KARPENTER = """\
### `g6.xlarge`
#### Labels
 | Label | Value |
 |--|--|
 |karpenter.k8s.aws/instance-cpu|4|
 |karpenter.k8s.aws/instance-gpu-memory|22888|
 |karpenter.k8s.aws/instance-gpu-name|l4|
 |karpenter.k8s.aws/instance-local-nvme|250|
 |karpenter.k8s.aws/instance-memory|16384|
 |karpenter.k8s.aws/instance-network-bandwidth|2500|
#### Resources
 | Resource | Quantity |
 |--|--|
 |cpu|3920m|
 |nvidia.com/gpu|1|
 |pods|58|
"""


def test_the_fetching_script_reads_karpenters_files() -> None:
    """A row in the same columns as the table; memory is the node's and not the GPU's."""
    (row,), cpu = tables(KARPENTER)
    assert cpu == []
    assert (row["memory_gib"], row["gpu_memory_mib"], row["network_gbps"]) == ("16", "22888", "2.5")
    with (FOLDER / "ec2-gpu-instances.csv").open() as stream:
        kept = next(r for r in csv.DictReader(s for s in stream if s[0] != "#") if r["instance_type"] == "g6.xlarge")
    assert row == kept
    date, usd = prices('// generated at 2026-07-20T13:44:30Z\n\t"us-east-1": {\n\t\t"g6.xlarge": 0.804800,\n\t},\n')
    assert (date, usd) == ("2026-07-20", {"g6.xlarge": 0.8048})
