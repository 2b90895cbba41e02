"""What vLLM's own reader of images fetches for a client, with the arguments that a replica gives it."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.engine_args import DEFAULT_ENVIRONMENT, NO_MEDIA, engine_arguments
from tests.unit.listener import listening

#: One transparent pixel.
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABh6FO1AAAAABJRU5ErkJggg=="


def connector(**kwargs: Any) -> Any:
    from vllm.multimodal.media.connector import MediaConnector

    model = {
        "deployment_config": {},
        "engine_config": {"model_id": "org/name", "engine_kwargs": kwargs},
        "scaling_config": {"num_workers": 1, "resources_per_worker": {"accelerator_type:L4": 0.001}},
    }
    arguments = engine_arguments(ModelConfig.model_validate(model), "/weights")
    return MediaConnector(allowed_media_domains=arguments["allowed_media_domains"])


def test_an_address_in_a_request_reaches_nothing_unless_the_model_file_names_its_host() -> None:
    """`fetch_image` read from any address that the replica reaches, Ray's dashboard among them."""
    with listening({"secret": "dashboard"}) as inside:
        with pytest.raises(ValueError, match=NO_MEDIA):
            connector().fetch_image(inside.url())
        with pytest.raises(ValueError, match=r"images\.example\.org"):
            connector(allowed_media_domains=["images.example.org"]).fetch_image(inside.url())
        assert inside.seen == [], "the request was made"
    assert connector().fetch_image(PIXEL).size == (1, 1), "an image in the request itself still comes"


def test_a_host_that_is_allowed_cannot_send_the_replica_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "VLLM_MEDIA_URL_ALLOW_REDIRECTS"
    monkeypatch.setenv(name, DEFAULT_ENVIRONMENT[name])
    with listening({"secret": "dashboard"}) as inside, listening(None, redirect_to=inside.url("localhost")) as allowed:
        with pytest.raises(Exception, match=r"."):
            connector(allowed_media_domains=["127.0.0.1"]).fetch_image(allowed.url())
        assert allowed.seen, "the allowed host was asked"
        assert inside.seen == []
