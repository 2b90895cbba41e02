"""The fleet's program against the stand-in's resource types in this process: no engine, but the real calls.

It handles a failure as the engine does: it repeats a failed create, and updates a half-made resource with the state
that was kept. So each single AWS call of a whole fleet can fail once, in seconds.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import pulumi
from botocore.exceptions import ClientError
from pulumi.runtime.mocks import MockMonitor

from modelfleet.infra.provider import Call, Made, PartlyMade, Props
from modelfleet.infra.provider.sdk import SECRET_SIGNATURE, SIGNATURE_KEY
from modelfleet.infra.provider.values import plain, wire
from tools.standin.aws.provider import all_invokes, all_resources
from tools.standin.aws.session import Aws, explain, open_session


class FailEachOnce:
    """Stands in for `Faults`: each changing call of the session fails the first time."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self._seen: set[str] = set()

    def before(self, service: str, operation: str, about: str = "") -> None:
        # A node group's name is drawn anew for each try; it must not make the call look like another one.
        line = re.sub(r"-[0-9a-f]{26}", "", f"{service}:{operation}:{about}")
        if operation.startswith(("Get", "Describe", "List", "Head")) or line in self._seen:
            return
        self._seen.add(line)
        self.failed.append(f"{service}:{operation}")
        raise ClientError({"Error": {"Code": "InternalFailure", "Message": "scripted"}}, operation)

    def after(self, operation: str) -> None:
        """Does nothing: a call that was carried out returns its answer."""


class RefusedCall(grpc.RpcError):
    """A function's error in the form in which the engine hands it on: the SDK ends a program for any other."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self._said = said

    def code(self) -> grpc.StatusCode:
        """As from a plugin."""
        return grpc.StatusCode.UNKNOWN

    def details(self) -> str:
        """What the plugin said."""
        return self._said


class Monitor(MockMonitor):
    """Knows the option that the SDK does not hand to mocks: what is deleted before its successor is made."""

    def __init__(self, mocks: pulumi.runtime.Mocks) -> None:
        super().__init__(mocks)
        self.deletes_first: set[tuple[str, str]] = set()

    def RegisterResource(self, request: Any) -> Any:
        if request.deleteBeforeReplace:
            self.deletes_first.add((request.type, request.name))
        register: Any = super().RegisterResource
        return register(request)


class MockedEngine(pulumi.runtime.Mocks):
    """Creates each resource for real, and tries again like a person who runs `pulumi up` until it works."""

    def __init__(self, region: str, faults: FailEachOnce | None = None) -> None:
        self.session: Aws = open_session({"region": region})
        self.session._faults = faults  # type: ignore[assignment] # the same methods
        self.types = all_resources()
        self.functions = all_invokes()
        self.made: list[tuple[str, str, Props]] = []
        self._monitor: Monitor
        self._inputs: dict[tuple[str, str], Props] = {}
        self._states: dict[tuple[str, str], tuple[str, str, Props]] = {}
        self.half_made = 0

    def call(self, args: pulumi.runtime.MockCallArgs) -> Any:
        try:
            return self.functions[args.token].call(self.session, plain(wire(args.args))), []
        except Exception as error:
            raise RefusedCall(explain(error)) from error

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        definition = self.types.get(args.typ)
        if definition is None:
            assert args.typ.startswith(("modelfleet:", "pulumi:")), f"the stand-in has no {args.typ}"
            return args.name, {}
        inputs = {**definition.defaults, **_plain(args.inputs)}
        if definition.autoname and definition.autoname.key not in inputs:
            inputs[definition.autoname.key] = f"{args.name}-0000000"
        call = Call(self.session, f"urn::{args.name}", args.name, args.typ, 0.0, lambda message: None)
        key = args.typ, args.name
        before, self._inputs[key] = self._inputs.get(key), inputs
        if before == inputs:
            _, id, state = self._states[key]
            return id, state
        first = key in self._monitor.deletes_first or definition.delete_before_replace
        if before is not None and first:
            self._forget(definition, call, key)
        made = self._imported(definition, call, args.resource_id, inputs) or self._until_made(definition, call, inputs)
        if before is not None and not first:
            self._forget(definition, call, key)
        state = {**inputs, **made.outputs}
        self._states[key] = (args.typ, made.id, state)
        self.made.append(self._states[key])
        return made.id, state

    def _forget(self, definition: Any, call: Any, key: tuple[str, str]) -> None:
        """Deletes what a second run replaces."""
        changed = {name for name, value in self._inputs[key].items() if value != self._states[key][2].get(name)}
        assert changed <= definition.force_new, f"{key}: a second run in this engine only replaces; changed: {changed}"
        made = self._states.pop(key)
        self.made.remove(made)
        definition.delete(call, made[1], made[2])

    def run(self, program: Callable[[], Any]) -> None:
        """Runs `program` with this in place of Pulumi's engine, until all that it makes exists.

        A second run leaves what is unchanged and replaces what is not; it updates and deletes nothing.
        """
        # pulumi.runtime.test asks for the thread's event loop, which an asyncio.run() of another test has removed.
        asyncio.set_event_loop(asyncio.new_event_loop())
        self._monitor = Monitor(self)
        pulumi.runtime.set_mocks(self, project="modelfleet", stack="test", preview=False, monitor=self._monitor)
        pulumi.runtime.test(program)()

    def destroy(self) -> None:
        """Deletes all that was made, last first."""
        self.session._faults = None
        made, self.made = self.made, []
        self._inputs, self._states = {}, {}
        for kind, id, state in reversed(made):
            call = Call(self.session, f"urn::{id}", id, kind, 0.0, lambda message: None)
            self.types[kind].delete(call, id, state)

    def _imported(self, definition: Any, call: Any, id: str | None, inputs: Props) -> Made | None:
        """What the program adopts, updated to what it says."""
        if not id:
            return None
        found = definition.read(call, id, {})
        return self._until_repaired(definition, call, PartlyMade(id, found, []), inputs, state=found)

    def _until_made(self, definition: Any, call: Any, inputs: Props) -> Made:
        for _ in range(60):
            try:
                made: Made = definition.create(call, inputs)
                return made
            except PartlyMade as partly:
                self.half_made += 1
                return self._until_repaired(definition, call, partly, inputs)
            except ClientError:
                continue
        raise AssertionError(f"{call.token} was never made")

    def _until_repaired(
        self, definition: Any, call: Any, partly: PartlyMade, inputs: Props, *, state: Props | None = None
    ) -> Made:
        state = state or {**inputs, **partly.outputs}
        for _ in range(60):
            try:
                return Made(partly.id, {**partly.outputs, **definition.update(call, partly.id, state, inputs)})
            except ClientError:
                continue
        raise AssertionError(f"{call.token} was never repaired")


def _plain(inputs: Any) -> Props:
    """Inputs as the stand-in wants them: whole numbers as int, secrets revealed, assets as they are."""
    shown = {key: _revealed(value) for key, value in inputs.items()}
    return {key: value if isinstance(value, pulumi.Asset) else plain(wire(value)) for key, value in shown.items()}


def _revealed(value: Any) -> Any:
    return value["value"] if isinstance(value, Mapping) and value.get(SIGNATURE_KEY) == SECRET_SIGNATURE else value
