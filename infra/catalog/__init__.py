"""Facts about EC2 instance types, accelerators, models and prices: CSV files with source and date, and typed queries.

A query takes the `Catalog` as an argument; `default_catalog()` reads the CSV files beside this module once.
Unknown names and missing prices raise, they are never 0.
"""

from infra.catalog.catalog import (
    Accelerator,
    Catalog,
    CatalogModel,
    DaemonSet,
    InstanceType,
    NoPrice,
    Price,
    Quantization,
    UnknownInstanceType,
    default_catalog,
    load_catalog,
)

__all__ = [
    "Accelerator",
    "Catalog",
    "CatalogModel",
    "DaemonSet",
    "InstanceType",
    "NoPrice",
    "Price",
    "Quantization",
    "UnknownInstanceType",
    "default_catalog",
    "load_catalog",
]
