"""The gateway: plain HAProxy whose configuration is a pure function of the plan.

`render` turns a `GatewayPlan` into text, `keys` hashes API keys. `infra/local/haproxy.py` runs the text here,
Kubernetes puts it in a ConfigMap.
"""

from modelfleet.infra.gateway.files import GatewayFiles, Runtime
from modelfleet.infra.gateway.keys import hash_key, key_faults, keys_id, render_key_map, with_rotated, without
from modelfleet.infra.gateway.render import render

__all__ = [
    "GatewayFiles",
    "Runtime",
    "hash_key",
    "key_faults",
    "keys_id",
    "render",
    "render_key_map",
    "with_rotated",
    "without",
]
