"""What a local stack's Ray does less often while nobody asks anything: each switch is one that this Ray has."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from modelfleet.infra.local.provider.ray import ray_environment
from modelfleet.infra.local.runtime import QUIET_RAY

PACKAGE = Path(ray.__file__).parent
#: Where Ray's Python code reads them; those of its C++ code are in the library, without `RAY_`.
READ_IN = (
    "serve/_private/constants.py",
    "dashboard/consts.py",
    "dashboard/modules/aggregator/aggregator_agent.py",
    "dashboard/modules/reporter/reporter_consts.py",
    "autoscaler/_private/constants.py",
    "_private/runtime_env/agent/runtime_env_consts.py",
    "_private/runtime_env/agent/main.py",
)


@pytest.mark.parametrize("name", QUIET_RAY)
def test_this_ray_reads_the_switch(name: str) -> None:
    own = name.removeprefix("RAY_")
    if own.islower():
        assert own.encode() in (PACKAGE / "_raylet.so").read_bytes()
        return
    texts = [(PACKAGE / one).read_text() for one in READ_IN if (PACKAGE / one).is_file()]
    assert any(f'"{name}"' in text for text in texts)


def test_a_stacks_ray_gets_them_and_a_stack_may_say_otherwise() -> None:
    assert QUIET_RAY.items() <= ray_environment({}).items()
    assert ray_environment({"REPORTER_UPDATE_INTERVAL_MS": "1000"})["REPORTER_UPDATE_INTERVAL_MS"] == "1000"
