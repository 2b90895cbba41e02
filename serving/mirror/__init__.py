"""A model's copy in object storage, made complete by its manifest.

    fill(folder, uri, …) → Manifest      resumable, verified upload; the manifest is written last
    status(uri) → Status                 absent, complete or damaged
    fetch(uri, cache) → Path             verified download, once per node
    complete_version(uri) → str | None   the prefix that holds the files, for a loader that reads S3 itself

Needs boto3 only; credentials, region and endpoint come from the environment.
"""

from serving.mirror.manifest import Manifest
from serving.mirror.node import complete_version, fetch
from serving.mirror.read import Status, status
from serving.mirror.upload import fill

__all__ = ["Manifest", "Status", "complete_version", "fetch", "fill", "status"]
