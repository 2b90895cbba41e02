"""The local target's Pulumi provider plugin `modelfleet`: Ray, Serve applications, weights, code, gateway here.

The engine starts `pulumi-resource-modelfleet` (named in `Pulumi.yaml` under `plugins`) and ends it after each run.
What the plugin starts lives on: it is detached, and found again by process id and start time, never by name.
"""
