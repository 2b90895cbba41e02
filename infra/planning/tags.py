"""Findings about `tags` that a service of AWS would refuse, in the middle of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator

from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import Finding

#: A resource has at most 50 tags; the rest is for ours (stack, name, pool) and those that EKS and Kubernetes set on
#: nodes and Auto Scaling groups. https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions
MOST_TAGS = 40
LONGEST_KEY, LONGEST_VALUE = 128, 256
#: What every service takes: the strictest of them. The same page, and
#: https://docs.aws.amazon.com/IAM/latest/UserGuide/id_tags.html
_CHARACTERS = re.compile(r"[\w .:/=+@-]*")
ALLOWED = "letters, digits, spaces and _ . : / = + - @"
RESERVED = "aws:"


def tag_findings(stack: LoadedStack) -> list[Finding]:
    """Findings for the stack file's `tags`, where the stack makes anything on AWS."""
    if stack.config.target.on_this_machine:
        return []
    return [stack.finding(("tags", *path), message) for path, message in _faults(stack.config.tags)]


def _faults(tags: dict[str, str]) -> Iterator[tuple[tuple[str, ...], str]]:
    if len(tags) > MOST_TAGS:
        yield (), f"has {len(tags)}; allowed are {MOST_TAGS}: AWS takes 50, and ours and Kubernetes' come on top"
    seen: dict[str, str] = {}
    for key, value in tags.items():
        if key.lower().startswith(RESERVED):
            yield (key,), f"begins with '{RESERVED}', which only AWS may set; choose another name"
        if not 0 < len(key) <= LONGEST_KEY or not _CHARACTERS.fullmatch(key):
            yield (key,), f"is not a key of a tag; allowed are 1 to {LONGEST_KEY} of: {ALLOWED}"
        if len(value) > LONGEST_VALUE or not _CHARACTERS.fullmatch(value):
            yield (key,), f"found '{value}'; allowed are at most {LONGEST_VALUE} of: {ALLOWED}"
        # IAM's keys have no case: it refuses `Team` beside `team`.
        if (other := seen.setdefault(key.lower(), key)) != key:
            yield (key,), f"differs from '{other}' in case alone, and IAM takes both as one key; remove one"
