"""A model's copy in object storage, complete once its manifest is there.

    fill(folder, uri, …) → Manifest      resumable, verified copy; the manifest is written last
    fill_from(origin, uri, …)            the same from the Hub or another bucket, without a disk
    status(uri) → Status                 absent, complete or damaged
    fetch(uri, cache) → Path             verified download, once per node
    complete_version(uri) → str | None   the prefix that holds the files, for a loader that reads S3 itself

S3 needs boto3 only, gs:// and az:// obstore; credentials, region and endpoint come from the environment.
"""

from modelfleet.serving.mirror.manifest import Manifest
from modelfleet.serving.mirror.node import complete_version, fetch
from modelfleet.serving.mirror.read import Status, status
from modelfleet.serving.mirror.upload import fill, fill_from

__all__ = ["Manifest", "Status", "complete_version", "fetch", "fill", "fill_from", "status"]
