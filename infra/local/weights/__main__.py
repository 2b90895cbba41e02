"""`python -m modelfleet.infra.local.weights SOURCE`: prints the model's folder; progress and errors go to stderr."""

from __future__ import annotations

import sys

from modelfleet.infra.local.weights import materialize
from modelfleet.serving.config.checkpoint_files import Kind
from modelfleet.serving.config.errors import ModelfleetError


def main(source: str, kind: Kind = "model") -> int:
    """Exit code 0, or the error's own: 1 for a source of unknown form, 2 for the environment's."""
    try:
        folder = materialize(source, kind=kind, report=lambda line: print(line, file=sys.stderr, flush=True))
    except ModelfleetError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))  # type: ignore[arg-type]  # the kind is the plan's
