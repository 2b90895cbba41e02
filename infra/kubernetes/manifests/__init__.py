"""Pure functions from a `Plan` to Kubernetes manifests, as dicts in the API's own words. They decide nothing.

`everything(plan)` is the whole stack without its secrets, in the order in which it can be applied.
"""

from modelfleet.infra.kubernetes.manifests.everything import everything
from modelfleet.infra.kubernetes.manifests.pods import Manifest

__all__ = ["Manifest", "everything"]
