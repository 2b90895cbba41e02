"""One YAML per model, one `pulumi up` per environment. Everything that is installed has this one import root.

    from modelfleet import deploy_stack        # the Pulumi program of a fleet: its stack file and model files
    from modelfleet import Existing, Fleet     # the same as a component of anybody's program

In the repository `cli`, `infra` and `serving` are folders at the top, and links here; in a wheel they are folders here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelfleet.infra.component import Existing, Fleet
    from modelfleet.infra.program import deploy_stack

__all__ = ["Existing", "Fleet", "deploy_stack"]


def __getattr__(name: str) -> Any:
    """Load on first use: Pulumi's SDK takes most of a second, and most commands do without."""
    if name in __all__:
        from modelfleet.infra import component, program

        return getattr(program if name == "deploy_stack" else component, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
