"""Writes `ec2-instances.csv` and `prices.csv` of `infra/catalog` from AWS, for every region that prices.csv names.

    python -m tools.catalog [REGION ...]      adds these regions

Needs credentials with `ec2:DescribeInstanceTypes` and `pricing:GetProducts`. It keeps the instance types with a
GPU of `serving/config/data/accelerators.csv` (by EC2's name and memory), and a few families without one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelfleet.infra.catalog.catalog import EVERY_REGION, FOLDER
from modelfleet.infra.reading.prices import API_REGION, SERVICES, price_list
from modelfleet.serving.config.accelerators import CPU, accelerators, known_gpus
from modelfleet.serving.config.catalogs import csv_rows
from tools.catalog.tables import write_table

Row = dict[str, str]
#: Makes a client of a service in a region: `boto3.client`, or a test's.
Client = Callable[[str, str], Any]

#: Families with AVX-512 and AMX, which vLLM's CPU build uses.
CPU_FAMILIES = ("c7i", "m7i", "r7i")
#: A larger CPU pool gains nothing, because one replica does not use more.
MAX_CPU_VCPUS = 64


def main(arguments: Sequence[str], client: Client, folder: Path = FOLDER) -> None:
    """Write both tables; raises botocore's errors."""
    kept = list(csv_rows(folder / "prices.csv"))
    regions = list(dict.fromkeys([*(row["region"] for row in kept if row["region"] != EVERY_REGION), *arguments]))
    types = {row["instance_type"]: row for region in regions for row in instance_rows(described(client("ec2", region)))}
    instances = sorted(types.values(), key=_order)
    names = [*SERVICES, *(row["instance_type"] for row in instances)]
    found = {region: price_list(client("pricing", API_REGION), region, names) for region in regions}
    prices = [row for row in kept if row["region"] == EVERY_REGION or row["name"] not in names]
    prices += [
        {
            "region": region,
            "name": name,
            "usd_per_hour": f"{one.usd_per_hour:g}",
            "date": one.date,
            "source": one.source,
        }
        for region in regions
        for name, one in found[region].items()
    ]
    source = f"Source: EC2 DescribeInstanceTypes in {', '.join(regions)}, {datetime.now(UTC).date()}."
    write_table(folder / "ec2-instances.csv", instances, source)
    write_table(folder / "prices.csv", prices)
    print(f"{len(instances)} instance types, {len(prices)} prices in {', '.join(regions)}. Next: git diff {folder}")


def described(ec2: Any) -> Iterator[Mapping[str, Any]]:
    """Everything that the region's DescribeInstanceTypes returns."""
    for page in ec2.get_paginator("describe_instance_types").paginate():
        yield from page["InstanceTypes"]


def instance_rows(found: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Rows of ec2-instances.csv for the instance types that modelfleet uses."""
    for one in found:
        if accelerator := _accelerator(one):
            yield {
                "accelerator": accelerator,
                "instance_type": one["InstanceType"],
                "vcpus": str(one["VCpuInfo"]["DefaultVCpus"]),
                "memory_gib": str(one["MemoryInfo"]["SizeInMiB"] // 1024),
                "gpus": str(sum(gpu["Count"] for gpu in _gpus(one))),
                "local_nvme_gb": str(one.get("InstanceStorageInfo", {}).get("TotalSizeInGB", 0)),
                "efa_interfaces": str(one["NetworkInfo"].get("EfaInfo", {}).get("MaximumEfaInterfaces", 0)),
                "max_pods": str(_max_pods(one["NetworkInfo"])),
                "network_gbps": f"{_network_gbps(one['NetworkInfo']):g}",
            }


def _gpus(one: Mapping[str, Any]) -> list[Any]:
    return list(one.get("GpuInfo", {}).get("Gpus", []))


def _accelerator(one: Mapping[str, Any]) -> str | None:
    """The type's accelerator; None for a type that modelfleet does not use, such as one with a part of a GPU."""
    if gpus := _gpus(one):
        named = {(gpu.ec2_gpu, gpu.memory_mib): name for name, gpu in known_gpus().items()}
        return named.get((gpus[0]["Name"], gpus[0]["MemoryInfo"]["SizeInMiB"]))
    family = one["InstanceType"].partition(".")[0]
    return CPU if family in CPU_FAMILIES and one["VCpuInfo"]["DefaultVCpus"] <= MAX_CPU_VCPUS else None


def _max_pods(network: Mapping[str, Any]) -> int:
    """The default network card's addresses, less one for each interface, plus two pods of the host's network.

    https://github.com/awslabs/amazon-eks-ami, max-pods-calculator. The VPC CNI uses only the default card.
    """
    interfaces: int = _default_card(network)["MaximumNetworkInterfaces"]
    return interfaces * (int(network["Ipv4AddressesPerInterface"]) - 1) + 2


def _network_gbps(network: Mapping[str, Any]) -> float:
    """What a pod has for long: the default network card's baseline. Others need EFA, bursts end after minutes."""
    return float(_default_card(network)["BaselineBandwidthInGbps"])


def _default_card(network: Mapping[str, Any]) -> Mapping[str, Any]:
    cards: dict[int, Mapping[str, Any]] = {card["NetworkCardIndex"]: card for card in network["NetworkCards"]}
    return cards[network["DefaultNetworkCardIndex"]]


def _order(row: Row) -> tuple[int, str, int, str]:
    """Sort key: accelerator in its table's order, then family, then smallest first."""
    name = row["instance_type"]
    return accelerators().index(row["accelerator"]), name.partition(".")[0], int(row["vcpus"]), name


if __name__ == "__main__":
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        main(sys.argv[1:], lambda service, region: boto3.client(service, region_name=region))
    except (BotoCoreError, ClientError) as error:
        sys.exit(
            f"AWS could not be queried: {error}. Set AWS_PROFILE to credentials that may describe and price types."
        )
