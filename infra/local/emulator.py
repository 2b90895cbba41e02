"""How a local stack reaches the S3 emulator: its address, a region, and credentials that open nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from serving.config.errors import SetupError

CHECKOUT = Path(__file__).resolve().parents[2]
REGION = "us-east-1"
#: moto takes any credentials; these keep the user's real ones out of Ray's environment and out of the state.
ACCESS_KEY = "modelfleet-local"


def endpoint(s3_port: int) -> str:
    """URL of the emulator."""
    return f"http://127.0.0.1:{s3_port}"


def environment(s3_port: int) -> dict[str, str]:
    """What the AWS SDKs read in the replicas and in Ray's download of the code."""
    return {
        "AWS_ENDPOINT_URL": endpoint(s3_port),
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": ACCESS_KEY,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        # A user's profile must not lead the replicas to a real account.
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


def ensure_emulator(s3_port: int) -> None:
    """Starts the emulator where it does not run, by the tool that knows how; raises `SetupError` with its sentence."""
    command = [sys.executable, "-m", "tools.emulator", "start", "--port", str(s3_port)]
    result = subprocess.run(
        command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SetupError((result.stderr.strip().splitlines() or ["the S3 emulator does not start"])[-1])
