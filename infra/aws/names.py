"""Names in AWS that a service limits."""

from __future__ import annotations

import hashlib
import re
from typing import Final

#: https://docs.aws.amazon.com/AmazonElastiCache/latest/APIReference/API_CreateReplicationGroup.html
LONGEST_STORE_ID: Final = 40


def store_id(stack: str) -> str:
    """`modelfleet-<stack>-head`; a stack's name that ElastiCache would not take, or a long one, becomes a hash."""
    wanted = f"modelfleet-{stack}-head"
    if len(wanted) <= LONGEST_STORE_ID and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", wanted):
        return wanted
    return f"modelfleet-{hashlib.sha256(stack.encode()).hexdigest()[:20]}-head"
