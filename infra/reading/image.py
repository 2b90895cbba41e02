"""What the stack's images are made from, as one zip named by its content: the source of a CodeBuild project."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from typing import Final

from modelfleet.infra.planning.plan import ImageSource
from modelfleet.infra.reading.code import SERVING, zipped

#: The files of each image.
SERVING_IMAGE: Final = ("buildspec.yml", "serving/Dockerfile", "requirements/cluster.txt")
MIRROR_IMAGE: Final = ("buildspec.yml", "serving/mirror/Dockerfile", "requirements/mirror.txt")
#: Where Dockerfiles and buildspec look for each file.
FILES: Final = {
    "buildspec.yml": SERVING / "buildspec.yml",
    "serving/Dockerfile": SERVING / "Dockerfile",
    "serving/mirror/Dockerfile": SERVING / "mirror" / "Dockerfile",
    "requirements/cluster.txt": SERVING.parent / "requirements" / "cluster.txt",
    "requirements/mirror.txt": SERVING.parent / "requirements" / "mirror.txt",
}


@cache
def image_source() -> ImageSource:
    """The zip and, by itself, what goes into each image: new code of one must not make the other anew."""
    return ImageSource(*(_sha256(names) for names in (FILES, SERVING_IMAGE, MIRROR_IMAGE)))


def build_image_zip() -> bytes:
    """Dockerfiles, requirements with their hashes, and the commands; the same files give the same bytes."""
    return _zip(FILES)


def _zip(names: Iterable[str]) -> bytes:
    return zipped((name, FILES[name].read_bytes()) for name in sorted(names))


def _sha256(names: Iterable[str]) -> str:
    return hashlib.sha256(_zip(names)).hexdigest()
