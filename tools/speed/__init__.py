"""Fits the speed model of `infra/planning/speed` to published measurements, and checks it. For developers."""
