"""The mirror Jobs' image is made from its Dockerfile by `buildah`."""

from __future__ import annotations

import pytest

from modelfleet.serving.config.errors import SetupError
from tools.kubernetes.node import images, machine, serving_image

#: What stays of 300 MB beside `python:3.12-slim-bookworm`, which unpacks to 125 MB.
MOST_BYTES = 175_000_000


def test_the_mirrors_dockerfile_gives_a_slim_image_whose_packages_load() -> None:
    """Its own last step imports them, as no user: a build that ends has them."""
    try:
        machine.require()
    except SetupError as error:
        pytest.skip(str(error))
    base, mirror = serving_image.mirror()
    for recipe in (images.debian(), base, mirror):
        images.build(recipe)
    assert 20_000_000 < images.own_bytes(mirror, base) < MOST_BYTES
