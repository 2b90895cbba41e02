"""Facts about EC2 instance types, quotas, accelerators, models and prices: CSV files with source and date, and queries.

A query takes the `Catalog` as an argument; `default_catalog()` reads the CSV files next to this module once.
An unknown fact is None, never 0.
"""

from modelfleet.infra.catalog.catalog import (
    REFERENCE_REGION,
    Catalog,
    CatalogModel,
    DaemonSet,
    InstanceType,
    Price,
    Quantization,
    Quota,
    default_catalog,
)
from modelfleet.infra.catalog.measured import Measured
from modelfleet.serving.config.accelerators import Accelerator

__all__ = [
    "REFERENCE_REGION",
    "Accelerator",
    "Catalog",
    "CatalogModel",
    "DaemonSet",
    "InstanceType",
    "Measured",
    "Price",
    "Quantization",
    "Quota",
    "default_catalog",
]
