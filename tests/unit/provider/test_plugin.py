"""The engine's protocol over a table of resource types, tested without an engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pulumi.provider.experimental.property_value import PropertyValue
from pulumi.runtime import proto
from pulumi.runtime.proto import provider_pb2, status_pb2

from modelfleet.infra.provider import (
    Autoname,
    InvokeDef,
    Made,
    PartlyMade,
    Plugin,
    PluginServicer,
    Refused,
    ResourceDef,
)
from modelfleet.infra.provider.values import UNKNOWN, wire_map

URN = "urn:pulumi:test::project::test:x:Parent$test:x:Thing::my-Thing"


class Aborted(Exception):
    """What gRPC raises when a call is aborted."""


class Context:
    """Records how a call was aborted."""

    async def abort(self, code: Any, message: str, trailing_metadata: Any = ()) -> None:
        self.code, self.message, self.metadata = code.name, message, trailing_metadata
        raise Aborted(message)


def create(call: Any, inputs: dict[str, Any]) -> Made:
    if inputs.get("name") == "refused":
        raise Refused("this name is taken")
    if inputs.get("name") == "never-ready":
        raise PartlyMade("id-1", {"status": "half"}, ["it did not get ready within 5 s"])
    if inputs.get("name") == "crash":
        raise KeyError("internal")
    return Made("id-1", {"arn": "arn:x"})


class Service(Plugin[str]):
    """A plugin with one type."""

    name = "test"
    called = "stand-in"
    way_out = "install the real plugin"

    def __init__(self) -> None:
        thing = ResourceDef[str](
            token="test:x:Thing",
            inputs=frozenset({"name", "size"}),
            outputs=frozenset({"arn"}),
            required=frozenset({"size"}),
            defaults={"size": 1},
            autoname=Autoname("name", max_length=20, lower=True),
            create=create,
            read=self.read,
            delete=lambda call, id, state: None,
        )
        super().__init__({thing.token: thing}, {"test:x:double": InvokeDef("test:x:double", self.double)})

    def configure(self, settings: dict[str, Any]) -> str:
        return "session"

    def read(self, call: Any, id: str, state: dict[str, Any]) -> dict[str, Any] | None:
        if id == "gone":
            raise ConnectionRefusedError("nobody listens")
        return None if id == "absent" else {"name": "live", "size": 3, "arn": "arn:x"}

    def is_gone(self, session: str, error: Exception) -> bool:
        return isinstance(error, ConnectionRefusedError)

    @staticmethod
    def double(session: str, args: dict[str, Any]) -> dict[str, Any]:
        return {"number": args["number"] * 2}


@pytest.fixture
def servicer() -> PluginServicer[str]:
    made: PluginServicer[str] = PluginServicer(Service(), [])
    asyncio.run(made.Configure(proto.ConfigureRequest(), Context()))
    return made


def struct(values: dict[str, Any]) -> Any:
    return PropertyValue.marshal_map(wire_map(values))


def back(answer: Any) -> dict[str, Any]:
    return {key: value.value for key, value in PropertyValue.unmarshal_map(answer).items()}


def check(servicer: PluginServicer[str], news: dict[str, Any], **more: Any) -> Any:
    request = proto.CheckRequest(urn=URN, news=struct(news), randomSeed=b"seed", **more)
    return asyncio.run(servicer.Check(request, Context()))


def test_a_name_comes_from_the_random_seed_and_fits_the_services_rules(servicer: PluginServicer[str]) -> None:
    first, again = check(servicer, {}), check(servicer, {})
    name = back(first.inputs)["name"]
    assert name == back(again.inputs)["name"], "preview and deployment must agree"
    assert name.startswith("my-thing-")
    assert len(name) <= 20
    assert back(first.inputs)["size"] == 1.0, "the default is filled in"


def test_an_existing_name_is_kept_unless_one_is_given(servicer: PluginServicer[str]) -> None:
    assert back(check(servicer, {}, olds=struct({"name": "old"})).inputs)["name"] == "old"
    assert back(check(servicer, {"name": "given"}, olds=struct({"name": "old"})).inputs)["name"] == "given"


def test_the_engines_autonaming_settings_are_followed(servicer: PluginServicer[str]) -> None:
    options = proto.CheckRequest.AutonamingOptions
    enforced = options(proposed_name="Team-Thing", mode=options.ENFORCE)
    assert back(check(servicer, {}, autonaming=enforced).inputs)["name"] == "team-thing"
    assert "name" not in back(check(servicer, {}, autonaming=options(mode=options.DISABLE)).inputs)


def test_an_input_that_is_not_honoured_is_refused_by_name_and_null_is_not_an_input(
    servicer: PluginServicer[str],
) -> None:
    failures = check(servicer, {"colour": "red", "shape": None}).failures
    assert [(failure.property, failure.reason) for failure in failures] == [
        ("colour", "test:x:Thing: input 'colour': the stand-in does not do this; install the real plugin")
    ]


def test_outputs_are_unknown_at_preview(servicer: PluginServicer[str]) -> None:
    request = proto.CreateRequest(urn=URN, properties=struct({"name": "a", "size": 1}), preview=True)
    made = asyncio.run(servicer.Create(request, Context()))
    assert back(made.properties) == {"name": "a", "size": 1.0, "arn": UNKNOWN}


@pytest.mark.parametrize("resource_id", ["absent", "gone"])
def test_an_absent_resource_reads_as_an_empty_answer(servicer: PluginServicer[str], resource_id: str) -> None:
    """Even an empty struct would look like a found resource. An emulator that has ended counts as empty."""
    answer = asyncio.run(servicer.Read(proto.ReadRequest(urn=URN, id=resource_id), Context()))
    assert answer.id == ""
    assert not answer.HasField("properties")


def test_a_read_shows_drift_as_inputs_and_keeps_what_the_program_left_out(servicer: PluginServicer[str]) -> None:
    request = proto.ReadRequest(urn=URN, id="x", inputs=struct({"size": 1}), properties=struct({"size": 1}))
    assert back(asyncio.run(servicer.Read(request, Context())).inputs) == {"size": 3.0}


def test_an_import_reads_all_inputs(servicer: PluginServicer[str]) -> None:
    answer = asyncio.run(servicer.Read(proto.ReadRequest(urn=URN, id="x"), Context()))
    assert back(answer.inputs) == {"name": "live", "size": 3.0}


def test_a_resource_that_exists_but_is_not_ready_is_kept_with_its_errors(servicer: PluginServicer[str]) -> None:
    context = Context()
    request = proto.CreateRequest(urn=URN, properties=struct({"name": "never-ready", "size": 1}))
    with pytest.raises(Aborted):
        asyncio.run(servicer.Create(request, context))
    status = status_pb2.Status.FromString(dict(context.metadata)["grpc-status-details-bin"])
    detail = provider_pb2.ErrorResourceInitFailed()
    assert status.details[0].Unpack(detail)
    assert (detail.id, list(detail.reasons)) == ("id-1", ["it did not get ready within 5 s"])
    assert back(detail.properties)["status"] == "half"


@pytest.mark.parametrize(
    ("name", "message"), [("refused", "this name is taken"), ("crash", "'internal'")], ids=["refusal", "crash"]
)
def test_an_error_is_one_sentence_without_a_traceback(servicer: PluginServicer[str], name: str, message: str) -> None:
    context = Context()
    with pytest.raises(Aborted):
        asyncio.run(servicer.Create(proto.CreateRequest(urn=URN, properties=struct({"name": name})), context))
    assert context.message == message


def test_an_unknown_type_and_an_unknown_function_are_named(servicer: PluginServicer[str]) -> None:
    context = Context()
    with pytest.raises(Aborted, match="test:x:Other: the stand-in does not do this; install the real plugin"):
        asyncio.run(servicer.Check(proto.CheckRequest(urn=URN.replace("Thing::", "Other::")), context))
    assert context.code == "UNIMPLEMENTED"
    with pytest.raises(Aborted, match="test:x:triple"):
        asyncio.run(servicer.Invoke(proto.InvokeRequest(tok="test:x:triple"), Context()))


def test_a_function_returns_plain_values(servicer: PluginServicer[str]) -> None:
    answer = asyncio.run(
        servicer.Invoke(proto.InvokeRequest(tok="test:x:double", args=struct({"number": 4})), Context())
    )
    assert back(getattr(answer, "return")) == {"number": 8.0}
