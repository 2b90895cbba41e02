"""Typed queries over the CSV facts of this folder."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent


class UnknownInstanceType(LookupError):
    """The catalog has no such instance type."""


class NoPrice(LookupError):
    """The catalog has no price of this instance type in this region."""


@dataclass(frozen=True)
class InstanceType:
    """An EC2 instance type: `accelerator` is CPU for those without GPU, `gpu_memory_mib` is per GPU."""

    name: str
    accelerator: str
    vcpus: int
    memory_mib: int
    gpus: int
    gpu_memory_mib: int
    nvme_gb: int
    network_gbps: float
    efa_interfaces: int
    max_pods: int


@dataclass(frozen=True)
class Price:
    """On-demand price in USD per hour, with the date on which it was true and where it was read."""

    usd_per_hour: float
    date: str
    source: str


@dataclass(frozen=True)
class Catalog:
    """The tables. Make a small one by hand in a test, or take `default_catalog()`."""

    instance_types: Mapping[str, InstanceType]
    prices: Mapping[tuple[str, str], Price]

    def instance_type(self, name: str) -> InstanceType:
        """The instance type; raises `UnknownInstanceType`."""
        try:
            return self.instance_types[name]
        except KeyError:
            raise UnknownInstanceType(name) from None

    def instance_types_with(self, accelerator: str) -> tuple[InstanceType, ...]:
        """All instance types with this accelerator, smallest first."""
        found = (one for one in self.instance_types.values() if one.accelerator == accelerator)
        return tuple(sorted(found, key=lambda one: (one.gpus, one.vcpus, one.memory_mib, one.name)))

    def price(self, instance_type: str, *, region: str) -> Price:
        """The on-demand price; raises `NoPrice` when the catalog has none for the region."""
        try:
            return self.prices[region, instance_type]
        except KeyError:
            raise NoPrice(f"{instance_type} in {region}") from None

    def usd_per_hour(self, instance_type: str, *, region: str) -> float:
        """The on-demand price in USD per hour; raises `NoPrice`."""
        return self.price(instance_type, region=region).usd_per_hour

    def with_prices(self, prices: Mapping[tuple[str, str], Price]) -> Catalog:
        """This catalog with more prices by (region, instance type), e.g. from the AWS Pricing API."""
        return dataclasses.replace(self, prices={**self.prices, **prices})


@cache
def default_catalog() -> Catalog:
    """The catalog of the CSV files beside this module, read once."""
    return load_catalog(FOLDER)


def load_catalog(folder: Path) -> Catalog:
    """The catalog of a folder's CSV files."""
    types = [_gpu_instance(row) for row in _rows(folder / "ec2-gpu-instances.csv")]
    types += [_cpu_instance(row) for row in _rows(folder / "ec2-cpu-instances.csv")]
    prices = {
        (row["region"], row["instance_type"]): Price(float(row["usd_per_hour"]), row["date"], "catalog")
        for row in _rows(folder / "ec2-prices.csv")
    }
    return Catalog({one.name: one for one in types}, prices)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file whose first lines, with `#`, say source and date."""
    with path.open(encoding="utf-8", newline="") as stream:
        yield from csv.DictReader(line for line in stream if not line.startswith("#"))


def _gpu_instance(row: dict[str, str]) -> InstanceType:
    return InstanceType(
        name=row["instance_type"],
        accelerator=row["accelerator"],
        vcpus=int(row["vcpus"]),
        memory_mib=round(float(row["memory_gib"]) * 1024),
        gpus=int(row["gpus"]),
        gpu_memory_mib=int(row["gpu_memory_mib"]),
        nvme_gb=int(row["local_nvme_gb"]),
        network_gbps=float(row["network_gbps"]),
        efa_interfaces=int(row["efa_interfaces"]),
        max_pods=int(row["max_pods"]),
    )


def _cpu_instance(row: dict[str, str]) -> InstanceType:
    return _gpu_instance({"accelerator": "CPU", "gpus": "0", "gpu_memory_mib": "0", "efa_interfaces": "0", **row})
