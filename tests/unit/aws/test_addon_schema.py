"""The stand-in refuses an add-on's configuration that EKS would, and takes ours."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.infra.aws.addons import AFTER_NODES, BEFORE_NODES
from modelfleet.infra.provider import Refused
from tools.standin.aws.resources._addon_schema import refuse_configuration


def test_our_configurations_are_taken() -> None:
    for spec in (*BEFORE_NODES, *AFTER_NODES):
        refuse_configuration(spec.name, dict(spec.configuration or {}))


@pytest.mark.parametrize(
    "configuration", [{"enableNetworkPolicy": True}, {"enableNetworkPolicy": "yes"}, {"env": {"WARM_IP_TARGET": 5}}]
)
def test_values_of_another_type_are_refused(configuration: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="string expected"):
        refuse_configuration("vpc-cni", configuration)
