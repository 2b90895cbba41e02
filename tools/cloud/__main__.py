"""Serves an emulated AWS on loopback until it is ended.

python -m tools.cloud --port 5000 [--administrator KEYID]
"""

from __future__ import annotations

import argparse
import os
import sys

from tools.cloud.server import ADMINISTRATOR, serve


def main(arguments: list[str] | None = None) -> int:
    """Serves until the process ends."""
    parser = argparse.ArgumentParser(prog="python -m tools.cloud", description="An emulated AWS that enforces IAM.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--administrator", action="append", help=f"access key id without limits (default: {ADMINISTRATOR})"
    )
    parsed = parser.parse_args(arguments)
    os.environ.setdefault("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    # Seconds until a certificate is issued, whether its record is there or not: the stand-in's plugin looks for that.
    os.environ.setdefault("MOTO_ACM_VALIDATION_WAIT", "2")
    serve(parsed.port, frozenset(parsed.administrator or (ADMINISTRATOR,)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
