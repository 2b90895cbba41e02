"""The local target's Pulumi provider plugin `modelfleet`: Ray, applications, weights, code and gateway.

The engine starts `pulumi-resource-modelfleet` (named in `Pulumi.yaml` under `plugins`) and ends it after each run.
The processes that the plugin starts live on. It finds them again by process id and start time, never by name.
"""
