"""The plan on AWS. `from modelfleet.infra.aws import AwsFleet` loads pulumi-aws; nothing else here does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelfleet.infra.aws.fleet import AwsFleet

__all__ = ["AwsFleet"]


def __getattr__(name: str) -> Any:
    """Loads the component on first use, so that the pure modules of this folder cost nothing."""
    if name == "AwsFleet":
        from modelfleet.infra.aws.fleet import AwsFleet

        return AwsFleet
    raise AttributeError(name)
