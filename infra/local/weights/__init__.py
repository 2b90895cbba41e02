"""Model weights on this machine: fetched or converted once, kept in a cache outside the checkout.

`materialize(source, cache)` is the whole interface. Only the local stack and tests use it; `serving/mirror` fills a
cluster's mirror.
"""

from modelfleet.infra.local.weights.materialize import default_cache, materialize
from modelfleet.infra.local.weights.sources import parse_source

__all__ = ["default_cache", "materialize", "parse_source"]
