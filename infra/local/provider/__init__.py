"""The Pulumi provider plugin `modelfleet`: the local target's Ray, applications, weights, code, gateway and monitor.

It also offers `modelfleet.infra.image_build`, which the target `eks` uses.

The engine starts `pulumi-resource-modelfleet` (named in `Pulumi.yaml` under `plugins`) and ends it after each run.
The processes that the plugin starts live on. It finds them again by process id and start time, never by name.
"""
