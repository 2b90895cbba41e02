"""Typed queries over the CSV facts of this folder."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
CPU = "CPU"
#: In service-prices.csv: the price is the same in all commercial regions.
EVERY_REGION = "*"


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
class Accelerator:
    """A GPU: memory in MiB as sold and as CUDA reports it, compute capability as (major, minor)."""

    name: str
    memory_mib: int
    usable_mib: int
    compute_capability: tuple[int, int]
    bfloat16: bool
    fp8: bool


@dataclass(frozen=True)
class Quantization:
    """What vLLM asks of a GPU for a quantization method; `bits` per weight, None when the checkpoint decides."""

    method: str
    min_compute_capability: tuple[int, int]
    native_compute_capability: tuple[int, int]
    bits: float | None
    note: str


@dataclass(frozen=True)
class DaemonSet:
    """What one daemon set requests on every worker node: millicores and MiB."""

    name: str
    gpu_only: bool
    cpu_millis: int
    memory_mib: int


@dataclass(frozen=True)
class CatalogModel:
    """A known model: its `config.json` in the names that Hugging Face uses, and its published parameter count."""

    hf_id: str
    parameters: int
    config: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class Catalog:
    """The tables. Make a small one by hand in a test, or take `default_catalog()`."""

    instance_types: Mapping[str, InstanceType]
    prices: Mapping[tuple[str, str], Price]
    accelerators: Mapping[str, Accelerator] = field(default_factory=dict)
    quantizations: Mapping[str, Quantization] = field(default_factory=dict)
    models: Mapping[str, CatalogModel] = field(default_factory=dict)
    daemon_sets: tuple[DaemonSet, ...] = ()
    services: Mapping[tuple[str, str], Price] = field(default_factory=dict)

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

    def model(self, hf_id: str) -> CatalogModel | None:
        """What is known of a Hub id, whose case does not matter to the Hub either; None when nothing is."""
        return self.models.get(hf_id) or self._by_lower_case.get(hf_id.lower())

    @cached_property
    def _by_lower_case(self) -> Mapping[str, CatalogModel]:
        return {hf_id.lower(): row for hf_id, row in self.models.items()}

    def service_price(self, service: str, *, region: str) -> Price:
        """Price per hour of something that is not an instance (`eks-cluster`, `nat-gateway`); raises `NoPrice`."""
        found = self.services.get((region, service)) or self.services.get((EVERY_REGION, service))
        if found is None:
            raise NoPrice(f"{service} in {region}")
        return found

    def knows_price(self, name: str, *, region: str) -> bool:
        """Whether an instance type or a service has a price in the region."""
        return any(
            key in table for key in ((region, name), (EVERY_REGION, name)) for table in (self.prices, self.services)
        )

    def daemon_requests(self, *, gpu: bool) -> tuple[int, int]:
        """Millicores and MiB that the daemon sets of a worker node request together."""
        found = [one for one in self.daemon_sets if gpu or not one.gpu_only]
        return sum(one.cpu_millis for one in found), sum(one.memory_mib for one in found)

    def with_prices(self, prices: Mapping[tuple[str, str], Price]) -> Catalog:
        """This catalog with more prices by (region, instance type or service), e.g. from the AWS Pricing API."""
        types = {key: price for key, price in prices.items() if key[1] in self.instance_types}
        services = {key: price for key, price in prices.items() if key[1] not in self.instance_types}
        return dataclasses.replace(self, prices={**self.prices, **types}, services={**self.services, **services})


@cache
def default_catalog() -> Catalog:
    """The catalog of the CSV files beside this module, read once."""
    return load_catalog(FOLDER)


def load_catalog(folder: Path) -> Catalog:
    """The catalog of a folder's CSV files."""
    types = [
        *map(_instance, _rows(folder / "ec2-gpu-instances.csv")),
        *map(_instance, _rows(folder / "ec2-cpu-instances.csv")),
    ]
    accelerators = [_accelerator(row) for row in _rows(folder / "accelerators.csv")]
    quantizations = [_quantization(row) for row in _rows(folder / "quantization.csv")]
    models = [_model(row) for row in _rows(folder / "models.csv")]
    return Catalog(
        instance_types={one.name: one for one in types},
        prices={(row["region"], row["instance_type"]): _price(row) for row in _rows(folder / "ec2-prices.csv")},
        accelerators={one.name: one for one in accelerators},
        quantizations={one.method: one for one in quantizations},
        models={one.hf_id: one for one in models},
        daemon_sets=tuple(_daemon_set(row) for row in _rows(folder / "daemon-sets.csv")),
        services={(row["region"], row["service"]): _price(row) for row in _rows(folder / "service-prices.csv")},
    )


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file whose first lines, with `#`, say source and date."""
    with path.open(encoding="utf-8", newline="") as stream:
        yield from csv.DictReader(line for line in stream if not line.startswith("#"))


def _instance(row: dict[str, str]) -> InstanceType:
    return InstanceType(
        name=row["instance_type"],
        accelerator=row.get("accelerator", CPU),
        vcpus=int(row["vcpus"]),
        memory_mib=int(row["memory_gib"]) * 1024,
        gpus=int(row.get("gpus", 0)),
        gpu_memory_mib=int(row.get("gpu_memory_mib", 0)),
        nvme_gb=int(row["local_nvme_gb"]),
        network_gbps=float(row["network_gbps"]),
        efa_interfaces=int(row.get("efa_interfaces", 0)),
        max_pods=int(row["max_pods"]),
    )


def _price(row: dict[str, str]) -> Price:
    return Price(float(row["usd_per_hour"]), row["date"], "catalog")


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def _accelerator(row: dict[str, str]) -> Accelerator:
    capability = _capability(row["compute_capability"])
    return Accelerator(
        row["accelerator"],
        int(row["memory_mib"]),
        int(row["usable_mib"]),
        capability,
        row["bfloat16"] == "true",
        row["fp8"] == "true",
    )


def _quantization(row: dict[str, str]) -> Quantization:
    least, native = _capability(row["min_compute_capability"]), _capability(row["native_compute_capability"])
    return Quantization(row["method"], least, native, float(row["bits"]) if row["bits"] else None, row["note"])


def _daemon_set(row: dict[str, str]) -> DaemonSet:
    return DaemonSet(row["name"], row["gpu_only"] == "true", int(row["cpu_millis"]), int(row["memory_mib"]))


#: Columns of models.csv that have another name in `config.json`.
_CONFIG_NAMES = {
    "architecture": "model_type",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "max_positions": "max_position_embeddings",
    "sliding_pattern": "sliding_window_pattern",
    "experts_per_token": "num_experts_per_tok",
    "shared_experts": "n_shared_experts",
    "dense_layers": "first_k_dense_replace",
}
#: And the columns whose name there depends on the architecture.
_EXPERTS = {"mixtral": "num_local_experts", "gpt_oss": "num_local_experts", "deepseek_v2": "n_routed_experts"}
_NOT_IN_CONFIG = {"hf_id", "parameters", "source", "tied", "experts", "quantization", "bits"}


def _model(row: dict[str, str]) -> CatalogModel:
    config: dict[str, Any] = {
        _CONFIG_NAMES.get(column, column): int(value) if value.isdigit() else value
        for column, value in row.items()
        if value and column not in _NOT_IN_CONFIG
    }
    config["tie_word_embeddings"] = row["tied"] == "true"
    if row["experts"]:
        config[_EXPERTS.get(row["architecture"], "num_experts")] = int(row["experts"])
    if row["quantization"]:
        config["quantization_config"] = {"quant_method": row["quantization"], "bits": float(row["bits"])}
    return CatalogModel(row["hf_id"], int(row["parameters"]), config, row["source"])
