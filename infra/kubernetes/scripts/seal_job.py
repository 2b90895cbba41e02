"""What a warm-up Job runs: start a model as a replica does, and write what that compiled into the stack's bucket.

Mounted beside mirror_job.py and run by the image's Python; the serving package comes from the stack's code artifact.

    ARGS   the Serve application's args, as JSON      CODE   s3://bucket/code/….zip
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> int:
    """Seal the compile cache; the exit code decides whether Kubernetes tries again."""
    from mirror_job import SCRATCH, load_code  # type: ignore[import-not-found]  # beside it where it is mounted

    load_code(os.environ["CODE"])
    # vLLM's processes are started anew and have only the environment.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SCRATCH / "code"), *filter(None, [os.environ.get("PYTHONPATH")])])
    from modelfleet.serving.warm_up import main as warm_up

    code: int = warm_up([])
    return code


if __name__ == "__main__":
    # vLLM's processes run this file again under another name.
    sys.path.insert(0, str(Path(__file__).parent))
    from json_lines import take_over_output  # type: ignore[import-not-found]  # as above

    take_over_output("warm-up", Path(__file__).parent)
    sys.exit(main())
