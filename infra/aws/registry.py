"""Names of images in Amazon ECR."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: https://docs.aws.amazon.com/AmazonECR/latest/userguide/docker-pull-ecr-image.html
_NAME = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/"
    r"(?P<repository>[^:@]+)(:(?P<tag>[^:@/]+))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class EcrImage:
    """An image in a repository of an account and region; a digest wins over a tag."""

    account: str
    region: str
    repository: str
    tag: str | None
    digest: str | None


def ecr_image(name: str | None) -> EcrImage | None:
    """What an image's name says; None for an image of another registry, or without a name."""
    found = _NAME.fullmatch(name or "")
    if found is None:
        return None
    digest = found["digest"]
    tag = None if digest else found["tag"] or "latest"
    return EcrImage(found["account"], found["region"], found["repository"], tag, digest)
