"""Writes the EC2 tables of `infra/catalog` from Karpenter's published data.

    python -m tools.catalog.fetch_ec2 --types instance-types.md --prices zz_generated.pricing_aws.go

Both files are in the repository aws/karpenter-provider-aws: `website/content/en/v1.14/reference/instance-types.md` and
`pkg/providers/pricing/zz_generated.pricing_aws.go`. Karpenter makes them from EC2's DescribeInstanceTypes and from the
AWS Price List API.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

CATALOG = Path(__file__).resolve().parents[2] / "infra" / "catalog"
LABEL = "karpenter.k8s.aws/instance-"

#: Karpenter's GPU name and memory in MiB to our accelerator; both A100 are called `a100`.
ACCELERATORS = {("t4", 16384): "T4", ("l4", 22888): "L4", ("a10g", 22888): "A10G"}
ACCELERATORS |= {("a100", 40960): "A100-40G", ("a100", 81920): "A100-80G"}
GPU_FAMILIES = ("g4dn", "g5", "g6", "gr6", "p4d", "p4de")
#: Families with AVX-512 and AMX, which vLLM's CPU build uses.
CPU_FAMILIES = ("c7i", "m7i", "r7i")
#: Beyond this a CPU pool gains nothing: one replica does not use more.
MAX_CPU_VCPUS = 64

GPU_COLUMNS = (
    "accelerator,gpu_memory_mib,instance_type,vcpus,memory_gib,gpus,local_nvme_gb,network_gbps,efa_interfaces,max_pods"
)
CPU_COLUMNS = "instance_type,vcpus,memory_gib,local_nvme_gb,network_gbps,max_pods"


def facts(markdown: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each instance type with its labels and its resources."""
    for section in re.split(r"^### `", markdown, flags=re.MULTILINE)[1:]:
        name, _, body = section.partition("`")
        rows = re.findall(r"^ *\|([^|\n]+)\|([^|\n]+)\|", body, flags=re.MULTILINE)
        yield name, {key.strip(): value.strip() for key, value in rows}


def row_of(name: str, found: dict[str, str]) -> dict[str, str]:
    """One row of either table."""
    gpu_memory = int(found.get(f"{LABEL}gpu-memory", "0"))
    return {
        "instance_type": name,
        "vcpus": found[f"{LABEL}cpu"],
        "memory_gib": str(int(found[f"{LABEL}memory"]) // 1024),
        "gpus": found.get("nvidia.com/gpu", "0"),
        "gpu_memory_mib": str(gpu_memory),
        "local_nvme_gb": found.get(f"{LABEL}local-nvme", "0"),
        "network_gbps": f"{int(found.get(f'{LABEL}network-bandwidth', '0')) / 1000:g}",
        "efa_interfaces": found.get("vpc.amazonaws.com/efa", "0"),
        "max_pods": found["pods"],
        "accelerator": ACCELERATORS.get((found.get(f"{LABEL}gpu-name", ""), gpu_memory), "CPU"),
    }


def tables(markdown: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The GPU rows and the CPU rows, smallest first within an accelerator."""
    gpu: list[dict[str, str]] = []
    cpu: list[dict[str, str]] = []
    for name, found in facts(markdown):
        family = name.split(".")[0]
        if family not in GPU_FAMILIES + CPU_FAMILIES or name.endswith("-flex"):
            continue
        row = row_of(name, found)
        if family in GPU_FAMILIES and row["gpus"] != "0" and row["accelerator"] != "CPU":
            gpu.append(row)
        elif family in CPU_FAMILIES and int(row["vcpus"]) <= MAX_CPU_VCPUS:
            cpu.append(row)
    order = list(dict.fromkeys(ACCELERATORS.values()))
    gpu.sort(key=lambda r: (order.index(r["accelerator"]), r["instance_type"].split(".")[0], int(r["vcpus"])))
    cpu.sort(key=lambda r: (r["instance_type"].split(".")[0], int(r["vcpus"])))
    return gpu, cpu


def prices(go_source: str) -> tuple[str, dict[str, float]]:
    """The date and the on-demand prices of us-east-1, USD per hour."""
    stamp = re.search(r"generated at (\d{4}-\d{2}-\d{2})", go_source)
    region = go_source.split('"us-east-1": {', 1)[1].split("\n\t},", 1)[0]
    return (stamp[1] if stamp else ""), {n: float(p) for n, p in re.findall(r'"([a-z0-9.-]+)": ([0-9.]+)', region)}


def write(path: Path, header: str, columns: str, rows: Sequence[dict[str, str]]) -> None:
    """One CSV file with its source in the first line."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        stream.write(f"# {header}\n")
        writer = csv.DictWriter(stream, columns.split(","), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Write the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", type=Path, required=True)
    parser.add_argument("--prices", type=Path, required=True)
    arguments = parser.parse_args()
    gpu, cpu = tables(arguments.types.read_text("utf-8"))
    date, usd = prices(arguments.prices.read_text("utf-8"))
    source = "Source: Karpenter's instance-type reference, v1.14 docs"
    write(
        CATALOG / "ec2-gpu-instances.csv",
        f"EC2 types with a GPU; gpu_memory_mib is per GPU. {source}.",
        GPU_COLUMNS,
        gpu,
    )
    write(CATALOG / "ec2-cpu-instances.csv", f"EC2 types without GPU (AVX-512, AMX). {source}.", CPU_COLUMNS, cpu)
    rows = [
        {
            "region": "us-east-1",
            "instance_type": r["instance_type"],
            "usd_per_hour": f"{usd[r['instance_type']]:g}",
            "date": date,
        }
        for r in [*gpu, *cpu]
    ]
    header = "On-demand Linux prices in USD per hour. Source: Karpenter's generated pricing table (AWS Price List API)."
    write(CATALOG / "ec2-prices.csv", header, "region,instance_type,usd_per_hour,date", rows)


if __name__ == "__main__":
    main()
