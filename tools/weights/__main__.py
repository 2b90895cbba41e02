"""`python -m tools.weights SOURCE`: prints the model's folder; progress and a failure's sentence go to stderr."""

from __future__ import annotations

import sys

from serving.config.errors import ModelfleetError
from tools.weights import materialize


def main(source: str) -> int:
    """Exit code 0, or the error's own: 1 for a source of unknown form, 2 for the environment."""
    try:
        folder = materialize(source, report=lambda line: print(line, file=sys.stderr, flush=True))
    except ModelfleetError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
