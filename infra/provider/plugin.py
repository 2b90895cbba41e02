"""The generic half of a provider plugin: the engine's protocol over a table of `ResourceDef`s.

`Plugin` names the resources, the functions and how to configure them; `PluginServicer` speaks gRPC.
It replaces the parts of `pulumi.provider.experimental.server` 3.272 that do not fit a provider with diffs:
unknown values, the old inputs in Diff, Read of something absent, names from the random seed, resources that
exist but failed, secrets, and calls that block.
"""

# ruff: noqa: D102 - the methods of the servicer are the protocol's, described in provider.proto

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Generic

import grpc
from google.protobuf import any_pb2, empty_pb2

from modelfleet.infra.provider.diff import diff_response
from modelfleet.infra.provider.resource import Call as ResourceCall
from modelfleet.infra.provider.resource import InvokeDef, Made, NotDone, PartlyMade, Refused, ResourceDef, Session
from modelfleet.infra.provider.sdk import (
    PropertyValue,
    Provider,
    ProviderServicer,
    proto,
    provider_pb2,
    provider_pb2_grpc,
    status_pb2,
)
from modelfleet.infra.provider.serve import EngineLog, engine_address, serve
from modelfleet.infra.provider.values import (
    UNKNOWN,
    Props,
    Wire,
    covers,
    marshal_map,
    plain,
    plain_map,
    unmarshal_map,
    wire_map,
    with_secrets_of,
)


class Plugin(Generic[Session]):
    """What one plugin offers. `configure` turns provider settings into a session or raises `Refused`."""

    name = ""
    """The package, such as `aws`."""
    version = ""
    """Its version; a stand-in has the version of its SDK."""
    called = "plugin in use"
    """What its messages call it; a stand-in's messages say that it is one."""
    way_out = ""
    """What a user can do about something that the plugin does not do."""

    def __init__(
        self, resources: Mapping[str, ResourceDef[Session]], invokes: Mapping[str, InvokeDef[Session]]
    ) -> None:
        self.resources = resources
        self.invokes = invokes

    def configure(self, settings: Props) -> Session:
        """A session for the provider's settings (plain values, JSON already read)."""
        raise NotImplementedError

    def describe(self, session: Session) -> str:
        """One line that tells the user what works here and on what; empty when there is nothing to tell."""
        return ""

    def explain(self, error: Exception) -> str:
        """The sentence for an error of the service."""
        return str(error) or type(error).__name__

    def is_gone(self, session: Session, error: Exception) -> bool:
        """Whether `error` means that the whole emulator has ended, and with it everything it held."""
        return False


class PluginServicer(ProviderServicer, Generic[Session]):
    """The gRPC half; see the module's docstring for how it differs from the SDK's server."""

    def __init__(self, plugin: Plugin[Session], argv: list[str]) -> None:
        address = engine_address(argv)
        super().__init__(argv, plugin.version, _Nothing(), address or "")
        self._plugin = plugin
        self._log = EngineLog(address)
        self._session: Session | None = None
        self._cancelled = threading.Event()

    # --- provider ---------------------------------------------------------------------------------------

    async def Handshake(self, request: Any, context: Any) -> Any:
        return proto.ProviderHandshakeResponse(
            accept_secrets=True, accept_resources=True, supports_autonaming_configuration=True
        )

    async def GetSchema(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, self._not_done(f"{self._plugin.name} schema"))

    async def CheckConfig(self, request: Any, context: Any) -> Any:
        return proto.CheckResponse(inputs=request.news)

    async def DiffConfig(self, request: Any, context: Any) -> Any:
        # An endpoint or a key may change between runs; that replaces nothing that exists.
        return proto.DiffResponse(changes=proto.DiffResponse.DIFF_NONE)

    async def Configure(self, request: Any, context: Any) -> Any:
        settings = _settings(unmarshal_map(request.args))

        def work() -> Session:
            session = self._plugin.configure(settings)
            if line := self._plugin.describe(session):
                self._log.info(line)
            return session

        self._session = await self._do(context, work)
        return proto.ConfigureResponse(
            acceptSecrets=True,
            acceptResources=True,
            supportsPreview=True,
            supports_autonaming_configuration=True,
        )

    async def Cancel(self, request: Any, context: Any) -> Any:
        self._cancelled.set()
        return empty_pb2.Empty()

    async def Invoke(self, request: Any, context: Any) -> Any:
        args = plain_map(unmarshal_map(request.args))

        def work() -> Props:
            function = self._plugin.invokes.get(request.tok)
            if function is None:
                raise NotDone(request.tok)
            return function.call(self._live(), args)

        result = await self._do(context, work)
        return proto.InvokeResponse(**{"return": marshal_map(wire_map(result))})

    # --- resources --------------------------------------------------------------------------------------

    async def Check(self, request: Any, context: Any) -> Any:
        news, olds = unmarshal_map(request.news), unmarshal_map(request.olds)

        def work() -> tuple[Wire, list[tuple[str, str]]]:
            definition = self._definition(request.urn)
            inputs = {**wire_map(_defaults(definition, news)), **news}
            _name_it(definition, inputs, olds, request)
            return inputs, _faults(definition, inputs, self._not_done)

        inputs, faults = await self._do(context, work)
        return proto.CheckResponse(
            inputs=marshal_map(inputs),
            failures=[proto.CheckFailure(property=key, reason=reason) for key, reason in faults],
        )

    async def Diff(self, request: Any, context: Any) -> Any:
        old = plain_map(unmarshal_map(request.old_inputs))
        new = plain_map(unmarshal_map(request.news))
        return await self._do(context, lambda: diff_response(self._definition(request.urn), old, new))

    async def Create(self, request: Any, context: Any) -> Any:
        sources = unmarshal_map(request.properties)
        inputs = plain_map(sources)

        def work() -> Made:
            definition = self._definition(request.urn)
            if request.preview:
                return Made("", _at_preview(definition, inputs))
            return definition.create(self._about(request), inputs)

        made = await self._do(context, work, sources)
        state = self._state(request.urn, {**inputs, **made.outputs}, sources)
        return proto.CreateResponse(id=made.id, properties=marshal_map(state))

    async def Read(self, request: Any, context: Any) -> Any:
        sources = unmarshal_map(request.inputs)
        state = unmarshal_map(request.properties)

        def work() -> Props | None:
            definition = self._definition(request.urn)
            call = self._about(request)
            found: Props | None = self._unless_gone(
                call, lambda: definition.read(call, request.id, plain_map(state)), None
            )
            return found

        live = await self._do(context, work)
        if live is None:
            return proto.ReadResponse()  # an empty id says "it is not there"; a struct, even empty, would not
        inputs = _inputs_from(self._definition(request.urn), plain_map(sources), live)
        whole = {**plain_map(sources), **live}
        return proto.ReadResponse(
            id=request.id,
            properties=marshal_map(self._state(request.urn, whole, {**state, **sources})),
            inputs=marshal_map(with_secrets_of(inputs, sources)),
        )

    async def Update(self, request: Any, context: Any) -> Any:
        sources = unmarshal_map(request.news)
        olds = unmarshal_map(request.olds)
        state, inputs = plain_map(olds), plain_map(sources)

        def work() -> Made:
            definition = self._definition(request.urn)
            kept = {key: state[key] for key in definition.outputs if key in state}
            if request.preview:
                changes = definition.changes_on_update
                return Made(request.id, kept | dict.fromkeys(changes(state, inputs) if changes else (), UNKNOWN))
            if definition.update is None:
                raise Refused(f"{definition.token} cannot be changed in place")
            return Made(request.id, {**kept, **definition.update(self._about(request), request.id, state, inputs)})

        made = await self._do(context, work, sources)
        whole = self._state(request.urn, {**inputs, **made.outputs}, sources)
        return proto.UpdateResponse(properties=marshal_map(whole))

    async def Delete(self, request: Any, context: Any) -> Any:
        state = plain_map(unmarshal_map(request.properties))

        def work() -> None:
            definition = self._definition(request.urn)
            call = self._about(request)
            self._unless_gone(call, lambda: definition.delete(call, request.id, state), None)

        await self._do(context, work)
        return empty_pb2.Empty()

    async def Construct(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, self._not_done(request.type))

    async def Call(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, self._not_done(request.tok))

    # --- helpers ----------------------------------------------------------------------------------------

    def _not_done(self, what: str) -> str:
        way_out = f"; {self._plugin.way_out}" if self._plugin.way_out else ""
        return f"{what}: the {self._plugin.called} does not do this{way_out}"

    def _step(self, message: str, urn: str) -> None:
        if self._cancelled.is_set():
            raise Refused("stopped by the user; the next run continues here")
        self._log.progress(message, urn)

    def _live(self) -> Session:
        if self._session is None:
            raise Refused(f"the {self._plugin.name} plugin was not configured")
        return self._session

    def _definition(self, urn: str) -> ResourceDef[Session]:
        token = _token(urn)
        definition = self._plugin.resources.get(token)
        if definition is None:
            raise NotDone(token)
        return definition

    def _about(self, request: Any) -> ResourceCall[Session]:
        return ResourceCall(
            session=self._live(),
            urn=request.urn,
            name=request.urn.rpartition("::")[2],
            token=_token(request.urn),
            timeout_seconds=float(request.timeout),
            note=lambda message: self._log.info(message, request.urn),
            step=lambda message: self._step(message, request.urn),
        )

    def _unless_gone(self, call: ResourceCall[Session], work: Callable[[], Any], instead: Any) -> Any:
        try:
            return work()
        except Exception as error:
            if not self._plugin.is_gone(call.session, error):
                raise
            self._log.warning(f"{call.name}: the emulator is not running, so this counts as gone", call.urn)
            return instead

    def _state(self, urn: str, values: Props, sources: Mapping[str, PropertyValue]) -> Wire:
        state = with_secrets_of(values, sources)
        for key in self._definition(urn).secret_outputs & state.keys():
            state[key] = state[key].with_secret(True)
        return state

    async def _do(self, context: Any, work: Callable[[], Any], sources: Wire | None = None) -> Any:
        """Runs blocking `work` in a thread; an error becomes one clean sentence for the user."""
        try:
            return await asyncio.to_thread(work)
        except PartlyMade as partly:
            await self._abort_partly(context, partly, sources or {})
        except NotDone as missing:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, self._not_done(missing.what))
        except Refused as refused:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(refused))
        except Exception as error:  # noqa: BLE001 - whatever a service raises, the user reads a sentence
            await context.abort(grpc.StatusCode.UNKNOWN, self._plugin.explain(error))

    async def _abort_partly(self, context: Any, partly: PartlyMade, sources: Wire) -> None:
        inputs = plain_map(sources)
        detail = provider_pb2.ErrorResourceInitFailed(
            id=partly.id,
            reasons=partly.reasons,
            properties=marshal_map(with_secrets_of({**inputs, **partly.outputs}, sources)),
            inputs=marshal_map(sources),
        )
        packed = any_pb2.Any()
        packed.Pack(detail)
        message = "; ".join(partly.reasons)
        status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=message, details=[packed])
        metadata = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(grpc.StatusCode.UNKNOWN, message, trailing_metadata=metadata)


class _Nothing(Provider):
    """The SDK's server requires a provider; every method that would reach it is overridden."""


def main(
    plugin: Plugin[Any],
    argv: list[str] | None = None,
    *,
    servicer: type[PluginServicer[Any]] = PluginServicer,
    at_end: Callable[[], None] = lambda: None,
) -> None:
    """The `main` of a plugin's executable; `servicer` may be a subclass that does more of the protocol.

    `at_end` runs when the engine ends the plugin or has ended itself.
    """
    serving = servicer(plugin, sys.argv[1:] if argv is None else argv)
    serve(lambda server: provider_pb2_grpc.add_ResourceProviderServicer_to_server(serving, server), at_end=at_end)


def _token(urn: str) -> str:
    return urn.split("::")[2].rpartition("$")[2]


def _settings(args: Mapping[str, PropertyValue]) -> Props:
    """Provider settings; structured ones arrive as JSON text."""
    settings = {}
    for key, value in plain_map(args).items():
        structured = (isinstance(value, str) and value[:1] in ("{", "[")) or value in ("true", "false")
        settings[key] = json.loads(value) if structured else value
    return settings


def _defaults(definition: ResourceDef[Any], news: Wire) -> Props:
    return {key: value for key, value in definition.defaults.items() if key not in news}


def _name_it(definition: ResourceDef[Any], inputs: Wire, olds: Wire, request: Any) -> None:
    """Fills in the name that the user left out: the old one, the engine's proposal, or one from the random seed."""
    auto = definition.autoname
    if auto is None or auto.key in inputs or any(key in inputs for key in auto.unless):
        return
    if auto.key in olds:
        inputs[auto.key] = olds[auto.key]
        return
    name = request.urn.rpartition("::")[2]
    options = request.autonaming if request.HasField("autonaming") else None
    if options is not None and options.mode == options.DISABLE:
        return
    if options is not None and options.mode in (options.ENFORCE, options.PROPOSE) and options.proposed_name:
        proposed = options.proposed_name
    else:
        digest = hashlib.sha256(bytes(request.randomSeed) or request.urn.encode()).hexdigest()[:7]
        proposed = f"{name[: auto.max_length - 8]}-{digest}"
    inputs[auto.key] = PropertyValue(proposed.lower() if auto.lower else proposed)


def _faults(definition: ResourceDef[Any], inputs: Wire, not_done: Callable[[str], str]) -> list[tuple[str, str]]:
    given = {key for key, value in inputs.items() if value.value is not None}
    faults = [(key, f"{definition.token}: '{key}' is required") for key in sorted(definition.required - given)]
    refused = sorted(given - definition.inputs - {"__defaults"})
    faults += [(key, not_done(f"{definition.token}: input '{key}'")) for key in refused]
    if definition.check is not None:
        faults += definition.check({key: plain(value) for key, value in inputs.items() if key in given})
    return faults


def _at_preview(definition: ResourceDef[Any], inputs: Props) -> Props:
    outputs: Props = {key: UNKNOWN for key in definition.outputs if key not in inputs}
    if definition.preview is not None:
        outputs.update(definition.preview(inputs))
    return outputs


def _inputs_from(definition: ResourceDef[Any], inputs: Props, live: Props) -> Props:
    """The inputs that would give the live state; drift is their difference from the program's inputs."""
    if not inputs:  # an import: all that the plugin can set
        return {key: live[key] for key in sorted(definition.inputs) if live.get(key) not in (None, {}, [])}
    seen = dict(inputs)
    for key, wanted in inputs.items():
        if key not in live:
            continue
        same = definition.same.get(key, covers)
        if not same(wanted, live[key]):
            seen[key] = live[key]
    return seen
