"""What the serving image is made from, as a zip named by its content: the source of a CodeBuild project."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Final

from modelfleet.infra.planning.plan import ImageSource
from modelfleet.infra.reading.code import SERVING, zipped

#: Where Dockerfile and buildspec look for each file.
FILES: Final = {
    "buildspec.yml": SERVING / "buildspec.yml",
    "serving/Dockerfile": SERVING / "Dockerfile",
    "requirements/cluster.txt": SERVING.parent / "requirements" / "cluster.txt",
}


@cache
def image_source() -> ImageSource:
    """The zip, named by the sha256 of its content."""
    return ImageSource(hashlib.sha256(build_image_zip()).hexdigest())


def build_image_zip() -> bytes:
    """Dockerfile, requirements with their hashes, and the commands; the same files give the same bytes."""
    return zipped((name, path.read_bytes()) for name, path in sorted(FILES.items()))
