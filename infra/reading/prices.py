"""Reads the prices that the catalog lacks from the AWS Pricing API, and keeps them for a week."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modelfleet.infra.catalog import Catalog, Price
from modelfleet.infra.planning.front_door import LOAD_BALANCER
from modelfleet.infra.planning.head_storage import NODE_TYPE, head_storage_plan
from modelfleet.infra.stack import LoadedStack

#: The Price List Query API has few endpoints; this one covers every commercial region.
API_REGION = "us-east-1"
KEPT_S = 7 * 24 * 3600
TIMEOUT_S = 3
NAT_GATEWAY = "nat-gateway"
#: How the Price List describes what is not a machine, with its service code.
SERVICES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    NAT_GATEWAY: ("AmazonEC2", {"productFamily": "NAT Gateway", "operation": "NatGateway"}),
    LOAD_BALANCER: ("AWSELB", {"productFamily": "Load Balancer-Application", "operation": "LoadBalancing:Application"}),
    NODE_TYPE: (
        "AmazonElastiCache",
        {"instanceType": NODE_TYPE, "cacheEngine": "Valkey", "locationType": "AWS Region"},
    ),
}
SOURCE = "AWS Price List API"


def with_known_prices(
    catalog: Catalog, stack: LoadedStack, root: Path, *, network: bool, accelerators: Iterable[str] = ()
) -> Catalog:
    """The catalog with the region's prices: those kept, and with `network` those that AWS returns.

    They are those of what the stack may use, and of every instance type with one of `accelerators`. A price that cannot
    be read stays unknown; the plan says so.
    """
    region = stack.region
    if region is None or not stack.config.target.priced:
        return catalog
    wanted = _wanted(stack, catalog) | {one.name for card in accelerators for one in catalog.instance_types_with(card)}
    missing = [name for name in sorted(wanted) if catalog.usd_per_hour(name, region=region) is None]
    if not missing:
        return catalog
    path = root / ".modelfleet" / "prices" / f"{region}.json"
    prices = _kept(path)
    lacking = [name for name in missing if name not in prices]
    if network and lacking and (answered := ask_aws(region, lacking)):
        prices |= answered
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({n: [p.usd_per_hour, p.date] for n, p in sorted(prices.items())}), encoding="utf-8")
    return catalog.with_prices({(region, name): price for name, price in prices.items()})


def _wanted(stack: LoadedStack, catalog: Catalog) -> set[str]:
    """Every instance type that the stack may use, its NAT gateways and its load balancer."""
    names = {stack.config.cluster.system_instance_type, NAT_GATEWAY} if stack.config.target.makes_cluster else set()
    if storage := head_storage_plan(stack):
        names.add(storage.node_type)
    if stack.config.target.makes_cluster and stack.config.gateway.expose != "none":
        names.add(LOAD_BALANCER)
    for pool in stack.config.pools:
        auto = [one.name for one in catalog.instance_types_with(pool.accelerator)]
        names |= set(auto if pool.instance_types == "auto" else pool.instance_types)
        names |= {name for other in pool.fallback for name in other.instance_types}
    return names


def _kept(path: Path) -> dict[str, Price]:
    if not path.is_file() or time.time() - path.stat().st_mtime > KEPT_S:
        return {}
    try:
        kept = json.loads(path.read_text("utf-8"))
        return {name: Price(float(usd), str(date), SOURCE) for name, (usd, date) in kept.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def ask_aws(region: str, names: Iterable[str], client: Any = None) -> dict[str, Price]:
    """Prices by name from `price_list`; empty when AWS cannot be queried."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return price_list(client or _client(), region, names)
    except (BotoCoreError, ClientError, KeyError, ValueError):
        return {}


def price_list(client: Any, region: str, names: Iterable[str]) -> dict[str, Price]:
    """On-demand prices in USD per hour of instance types (Linux) and `SERVICES`, from a `pricing` client.

    What the region does not sell is left out. Raises botocore's errors, and `KeyError` or `ValueError` for an answer
    that differs from AWS's documentation.
    """
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    found = {name: _price(client, region, name) for name in names}
    return {name: Price(usd, today, SOURCE) for name, usd in found.items() if usd is not None}


def _client() -> Any:
    import boto3
    from botocore.config import Config

    limits = Config(connect_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S, retries={"total_max_attempts": 1})
    return boto3.client("pricing", region_name=API_REGION, config=limits)


def _price(client: Any, region: str, name: str) -> float | None:
    """USD per hour of a service, or of an instance type: shared tenancy, Linux, no software, no reservation."""
    machine = {
        "instanceType": name,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    code, wanted = SERVICES.get(name, ("AmazonEC2", machine))
    filters = [{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in {**wanted, "regionCode": region}.items()]
    answer = client.get_products(ServiceCode=code, Filters=filters, FormatVersion="aws_v1")
    prices = [usd for item in answer["PriceList"] for usd in _hourly(json.loads(item))]
    return max(prices, default=None)


def _hourly(product: Mapping[str, Any]) -> Iterator[float]:
    for term in product["terms"].get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            if dimension["unit"] == "Hrs" and float(dimension["pricePerUnit"]["USD"]) > 0:
                yield float(dimension["pricePerUnit"]["USD"])
