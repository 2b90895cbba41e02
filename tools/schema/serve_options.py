"""Write `ray_serve_options.json` from the installed Ray.

python -m tools.schema.serve_options [--check]
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from tools.schema.common import DATA, as_text, bounds, described, plain, write_or_compare

SERVE_OPTIONS = DATA / "ray_serve_options.json"


def serve_options() -> dict[str, Any]:
    """Options of a Serve deployment, its autoscaling and its replica actor, and the keys of a runtime environment."""
    from ray.runtime_env import RuntimeEnv, RuntimeEnvConfig
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema

    return {
        "version": metadata.version("ray"),
        "deployment": _fields(DeploymentSchema),
        "autoscaling": _fields(AutoscalingConfig),
        "ray_actor_options": _fields(RayActorOptionsSchema),
        "runtime_env": sorted(key for key in RuntimeEnv.known_fields if not key.startswith("_")),
        "runtime_env_config": sorted(RuntimeEnvConfig.known_fields),
    }


def _fields(model: Any) -> dict[str, dict[str, Any]]:
    return {
        name: {
            **described(info.annotation),
            **bounds(info.metadata),
            "default": _default(info),
            "deprecated": "DEPRECATED" in (info.description or ""),
        }
        for name, info in model.model_fields.items()
    }


def _default(info: Any) -> Any:
    """The default; a deployment's options use a marker for "not set", which becomes None."""
    return None if info.is_required() or type(info.default).__name__ == "DEFAULT" else plain(info.default)


def main() -> int:
    """Write or compare the file."""
    return write_or_compare(SERVE_OPTIONS, as_text(serve_options()))


if __name__ == "__main__":
    raise SystemExit(main())
