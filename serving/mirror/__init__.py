"""A model's copy in object storage, made complete by its manifest.

    fill(folder, uri, …) → Manifest      resumable, verified upload; the manifest is written last
    status(uri) → Status                 absent, complete or damaged
    fetch(uri, cache) → Path             verified download, once per node

Needs boto3 only; credentials, region and endpoint come from the environment.
"""

from serving.mirror.manifest import Manifest
from serving.mirror.node import fetch
from serving.mirror.read import Status, status
from serving.mirror.upload import fill

__all__ = ["Manifest", "Status", "fetch", "fill", "status"]
