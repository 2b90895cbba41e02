"""The local target: the same plan on this machine, with Ray, vLLM and an S3 emulator on loopback."""

from infra.local.fleet import LocalFleet

__all__ = ["LocalFleet"]
