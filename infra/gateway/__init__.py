"""The gateway: plain HAProxy whose configuration is a pure function of the plan.

`render` turns a `GatewayPlan` into text, `keys` hashes API keys. `infra.local.haproxy` runs the text on this machine,
Kubernetes puts it into a ConfigMap.
"""

from infra.gateway.files import GatewayFiles, Runtime
from infra.gateway.keys import hash_key, key_faults, render_key_map
from infra.gateway.render import render

__all__ = ["GatewayFiles", "Runtime", "hash_key", "key_faults", "render", "render_key_map"]
