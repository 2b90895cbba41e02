"""Opens the store that a location names: S3 through boto3, Google Cloud Storage and Azure through obstore.

Why two clients (figures: docs/benchmarks.md, "Weights from a fast S3 server"): obstore reads S3 with less CPU, but
lacks what we need there. Filling a mirror needs parts that can be listed, sent and checked one by one. Reading one
needs profiles, buckets in another region and the endpoints of every partition.
"""

from __future__ import annotations

from typing import Any

from modelfleet.serving.mirror.store import Location, S3Store, Store, client


def open_store(location: Location, **options: Any) -> Store:
    """The store of a location; `options` are the S3 client's. Raises `MirrorError` when credentials are missing."""
    if location.scheme == "s3":
        return S3Store(location.bucket, client(**options))
    from modelfleet.serving.mirror import gcs_azure

    return (gcs_azure.google if location.scheme == "gs" else gcs_azure.azure)(location.bucket)
