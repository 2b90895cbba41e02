"""Typed queries over the CSV facts of this folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from modelfleet.infra.catalog.measured import Measured, measured_rows
from modelfleet.serving.config.accelerators import Accelerator, known_gpus
from modelfleet.serving.config.catalogs import capability, csv_rows

FOLDER = Path(__file__).parent
#: In prices.csv: the price is the same in all commercial regions.
EVERY_REGION = "*"
#: Its prices rank instance types where the stack's own region has none: price ratios differ little between regions.
REFERENCE_REGION = "us-east-1"
#: In quotas.csv: every instance type that no other row covers.
EVERY_OTHER_TYPE = "*"


@dataclass(frozen=True)
class InstanceType:
    """An EC2 instance type; `accelerator` is CPU for a type without a GPU."""

    name: str
    accelerator: str
    vcpus: int
    memory_mib: int
    gpus: int
    nvme_gb: int
    efa_interfaces: int
    max_pods: int
    network_gbps: float
    """Gbit/s that a pod has for long: the baseline of the default network card, without EFA."""


@dataclass(frozen=True)
class Price:
    """Price in USD per hour, with the date on which it was valid and its source."""

    usd_per_hour: float
    date: str
    source: str


@dataclass(frozen=True)
class Quota:
    """A vCPU quota of EC2: its code in Service Quotas and AWS's name for it."""

    code: str
    name: str


@dataclass(frozen=True)
class Quantization:
    """What vLLM requires of a GPU for a quantization method; `bits` per weight, None when the checkpoint decides."""

    method: str
    min_compute_capability: tuple[int, int]
    bits: float | None
    note: str


@dataclass(frozen=True)
class DaemonSet:
    """What one daemon set requests on every worker node: millicores and MiB.

    `only_with` is the word of what a stack must ask for to have it, such as `logs`; empty: every stack has it.
    """

    name: str
    gpu_only: bool
    only_with: str
    cpu_millis: int
    memory_mib: int


@dataclass(frozen=True)
class SystemPod:
    """What one pod on the system pool requests, millicores and MiB, and how many there are.

    `count` may be a word: as many as the stack file has `gateways` or `load-balancers`; `monitors` and `volumes` are
    those of a Prometheus of the stack's own; `returns` is 1 where a pool has `returnAfterMinutes`.
    """

    name: str
    count: int | str
    cpu_millis: int
    memory_mib: int


@dataclass(frozen=True)
class CatalogModel:
    """A known model. `config` is its `config.json` as far as memory needs it; None: its shape is not known.

    Parameters are in 10^9, as its maker says; None where nobody does. `gated` None: not known. `source` says where the
    row comes from, `shape_source` where the shape does.
    """

    hf_id: str
    config: Mapping[str, Any] | None
    kind: str
    architecture: str
    total_b: float | None
    active_b: float | None
    max_context: int | None
    licence: str
    gated: bool | None
    source: str
    shape_source: str
    date: str


@dataclass(frozen=True)
class Catalog:
    """The tables. Make a small one by hand in a test, or use `default_catalog()`."""

    instance_types: Mapping[str, InstanceType]
    prices: Mapping[tuple[str, str], Price]
    """By region and instance type, or service (`eks-cluster`, `nat-gateway`)."""
    accelerators: Mapping[str, Accelerator] = field(default_factory=dict)
    quantizations: Mapping[str, Quantization] = field(default_factory=dict)
    models: Mapping[str, CatalogModel] = field(default_factory=dict)
    daemon_sets: tuple[DaemonSet, ...] = ()
    system_pods: tuple[SystemPod, ...] = ()
    quotas: Mapping[tuple[str, str], Quota] = field(default_factory=dict)
    """By what an instance type's name starts with, and purchase option."""
    architecture_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By `model_type`: what transformers' config class has where a config.json is silent."""
    measured: tuple[Measured, ...] = ()
    """What vLLM took on real cards."""

    def instance_types_with(self, accelerator: str) -> tuple[InstanceType, ...]:
        """All instance types with this accelerator, smallest first."""
        found = (one for one in self.instance_types.values() if one.accelerator == accelerator)
        return tuple(sorted(found, key=lambda one: (one.gpus, one.vcpus, one.memory_mib, one.name)))

    def usd_per_hour(self, name: str, *, region: str) -> float | None:
        """USD per hour of an instance type (on-demand) or a service; None when no price is known in `region`."""
        found = self.prices.get((region, name)) or self.prices.get((EVERY_REGION, name))
        return None if found is None else found.usd_per_hour

    def quota(self, instance_type: str, purchase: str) -> Quota | None:
        """The vCPU quota that an instance type counts against; None for a Capacity Block, which counts against none."""
        starts = [start for start, bought in self.quotas if bought == purchase and instance_type.startswith(start)]
        return self.quotas.get((max(starts, key=len, default=EVERY_OTHER_TYPE), purchase))

    def model(self, hf_id: str) -> CatalogModel | None:
        """The model with this Hub id, in any case, which the Hub ignores too; None when it is not known."""
        return self.models.get(hf_id) or self._by_lower_case.get(hf_id.lower())

    def measured_of(self, hf_id: str) -> tuple[Measured, ...]:
        """What was measured of a model, by its Hub id in any case."""
        return tuple(row for row in self.measured if row.model.lower() == hf_id.lower())

    @cached_property
    def _by_lower_case(self) -> Mapping[str, CatalogModel]:
        return {hf_id.lower(): row for hf_id, row in self.models.items()}

    def daemon_requests(self, *, gpu: bool) -> tuple[int, int]:
        """Millicores and MiB that the daemon sets of a worker node request together."""
        found = [one for one in self.daemon_sets if not one.only_with and (gpu or not one.gpu_only)]
        return sum(one.cpu_millis for one in found), sum(one.memory_mib for one in found)

    def with_daemon_sets(self, word: str) -> Catalog:
        """This catalog for a stack that asks for the daemon sets `only_with` this word."""
        asked = (dataclasses.replace(one, only_with="") if one.only_with == word else one for one in self.daemon_sets)
        return dataclasses.replace(self, daemon_sets=tuple(asked))

    def with_prices(self, prices: Mapping[tuple[str, str], Price]) -> Catalog:
        """This catalog with more prices, e.g. from the AWS Price List API."""
        return dataclasses.replace(self, prices={**self.prices, **prices})


@cache
def default_catalog() -> Catalog:
    """The catalog of the CSV files next to this module, read once."""
    types = [_instance(row) for row in _rows("ec2-instances")]
    quantizations = [_quantization(row) for row in _rows("quantization")]
    return Catalog(
        instance_types={one.name: one for one in types},
        prices={(row["region"], row["name"]): _price(row) for row in _rows("prices")},
        accelerators=known_gpus(),
        quantizations={one.method: one for one in quantizations},
        models={one.hf_id: one for one in _models()},
        daemon_sets=tuple(_daemon_set(row) for row in _rows("daemon-sets")),
        system_pods=tuple(_system_pod(row) for row in _rows("system-pods")),
        architecture_defaults=json.loads((FOLDER / "architecture-defaults.json").read_text("utf-8"))["defaults"],
        measured=tuple(measured_rows()),
        quotas={(row["starts_with"], row["purchase"]): Quota(row["code"], row["name"]) for row in _rows("quotas")},
    )


def _rows(name: str) -> Iterator[dict[str, str]]:
    return csv_rows(FOLDER / f"{name}.csv")


def _instance(row: dict[str, str]) -> InstanceType:
    return InstanceType(
        name=row["instance_type"],
        accelerator=row["accelerator"],
        vcpus=int(row["vcpus"]),
        memory_mib=int(row["memory_gib"]) * 1024,
        gpus=int(row["gpus"]),
        nvme_gb=int(row["local_nvme_gb"]),
        efa_interfaces=int(row["efa_interfaces"]),
        max_pods=int(row["max_pods"]),
        network_gbps=float(row["network_gbps"]),
    )


def _price(row: dict[str, str]) -> Price:
    return Price(float(row["usd_per_hour"]), row["date"], "catalog")


def _quantization(row: dict[str, str]) -> Quantization:
    least = capability(row["min_compute_capability"])
    return Quantization(row["method"], least, float(row["bits"]) if row["bits"] else None, row["note"])


def _daemon_set(row: dict[str, str]) -> DaemonSet:
    size = int(row["cpu_millis"]), int(row["memory_mib"])
    return DaemonSet(row["name"], row["gpu_only"] == "true", row["only_with"], *size)


def _system_pod(row: dict[str, str]) -> SystemPod:
    count = int(row["count"]) if row["count"].isdecimal() else row["count"]
    return SystemPod(row["name"], count, int(row["cpu_millis"]), int(row["memory_mib"]))


def _shapes() -> dict[str, dict[str, Any]]:
    """shapes.jsonl by the shape's name: `config` and `source`."""
    lines = (FOLDER / "shapes.jsonl").read_text("utf-8").splitlines()
    return {row["shape"]: row for row in map(json.loads, lines)}


def _models() -> Iterator[CatalogModel]:
    shapes = _shapes()
    sections = json.loads((FOLDER / "quantization-sections.json").read_text("utf-8"))
    for row in _rows("models"):
        shape = shapes.get(row["shape"])
        longest = int(row["max_context"]) if row["max_context"].isdigit() else None
        config = None if shape is None else dict(shape["config"])
        if config is not None and longest is not None and row["shape"] != row["hf_id"].replace("/", "--"):
            config = _at_least(config, longest)
        if config is not None and row["quantization"]:
            config["quantization_config"] = sections[row["quantization"]]
        yield CatalogModel(
            hf_id=row["hf_id"],
            config=config,
            kind=row["kind"],
            architecture=row["architecture"] or _architecture(config),
            total_b=_number(row["total_params_b"]),
            active_b=_number(row["active_params_b"]),
            max_context=longest,
            licence=row["licence"],
            gated={"yes": True, "no": False}.get(row["gated"]),
            source=row["source"],
            shape_source="" if shape is None else shape["source"],
            date=row["date"],
        )


def _at_least(config: dict[str, Any], longest: int) -> dict[str, Any]:
    """The config of another model of the family, with no fewer positions than its maker gives this one.

    Qwen3-Coder-30B has the layers of Qwen3-30B-A3B and 262,144 positions in place of 40,960.
    """
    key = "max_position_embeddings"
    if isinstance(text := config.get("text_config"), dict) and key in text:
        return {**config, "text_config": _at_least(text, longest)}
    return {**config, key: longest} if config.get(key, longest) < longest else config


def _architecture(config: Mapping[str, Any] | None) -> str:
    names = (config or {}).get("architectures") or [""]
    return str(names[0])


def _number(text: str) -> float | None:
    """A number, or the first of a range such as `8-16`."""
    first = text.partition("-")[0]
    try:
        return float(first)
    except ValueError:
        return None
