"""Model weights on this machine: fetched or converted once, kept in a cache outside the checkout.

`materialize(source, cache)` is the whole interface. Beside the local stack, only tests use it; a cluster's mirror is
filled by `serving.mirror`.
"""

from tools.weights.materialize import default_cache, materialize
from tools.weights.sources import parse_source

__all__ = ["default_cache", "materialize", "parse_source"]
