"""Make every generated file: `python -m tools.schema [--check]`, or `make schema`."""

from __future__ import annotations

from tools.schema import cloud_rules, engine_arguments, json_schema, reference, serve_options, stack_reference


def main() -> int:
    """Write or compare them in the order of their dependencies; return 1 if `--check` found a difference."""
    makers = (
        engine_arguments.main,
        serve_options.main,
        json_schema.main,
        reference.main,
        stack_reference.main,
        cloud_rules.main,
    )
    codes = [make() for make in makers]
    return max(codes)


if __name__ == "__main__":
    raise SystemExit(main())
