"""A model's compile cache in object storage, made once for each image, card and set of arguments.

    write(root, uri, …) → SealManifest   packs the cache, sends it, and the manifest last; only a warm-up Job does so
    take(uri, root, machine, report)     a verified copy in the replica's own folder; False where there is none

Without a seal a replica compiles as it always did, so nothing here ever fails one.
"""

from modelfleet.serving.seal.copy import take, write
from modelfleet.serving.seal.machine import Machine, this_machine
from modelfleet.serving.seal.manifest import SealManifest
from modelfleet.serving.seal.places import cache_environment, seal_root

__all__ = ["Machine", "SealManifest", "cache_environment", "seal_root", "take", "this_machine", "write"]
