"""The local target: the same plan on this machine, with Ray, vLLM and an S3 emulator on loopback.

`fleet.LocalFleet` is the component. It is not imported here: the plugin in `provider/` runs
without pulumi-aws, whose import takes most of a second.
"""
