"""How a plugin describes one resource type: data and four functions, no gRPC.

    BUCKET = ResourceDef(
        token="aws:s3/bucket:Bucket",
        inputs=frozenset({"bucket", "forceDestroy", "tags"}),
        outputs=frozenset({"arn"}),                 # unknown at preview, filled by `create` and `read`
        force_new=frozenset({"bucket"}),
        autoname=Autoname("bucket", max_length=63, lower=True),
        create=create, read=read, update=update, delete=delete,
    )

    def create(call: Call[Aws], inputs: Props) -> Made: ...
    def read(call: Call[Aws], id: str, state: Props) -> Props | None: ...     # None: it is not there
    def update(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props: ...
    def delete(call: Call[Aws], id: str, state: Props) -> None: ...

All functions are plain and may block: each call runs in its own thread. An exception's text is what the
user reads, so raise `Refused("…")` with a clear sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from modelfleet.infra.provider.values import Props

Session = TypeVar("Session")
"""What a provider keeps between calls: clients, region, settings."""


class Refused(Exception):
    """The request cannot be carried out; the user sees the text as it is, without a traceback."""


class NotDone(Refused):
    """The plugin in use does not do this; the servicer adds the plugin's `way_out`."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: the plugin in use does not do this")
        self.what = what


@dataclass
class PartlyMade(Exception):
    """The resource exists but is not as asked (a cluster that never got ready): state is kept, and the run fails.

    The engine stores it with its errors, so that the next `pulumi up` repairs it instead of making another.
    """

    id: str
    outputs: Props
    reasons: list[str]


@dataclass(frozen=True)
class Made:
    """What `create` returns: the resource's id and its computed outputs (the base adds the inputs)."""

    id: str
    outputs: Props = field(default_factory=dict)


@dataclass(frozen=True)
class Call(Generic[Session]):
    """One request of the engine: which resource, with what session, within how many seconds (0: no limit)."""

    session: Session
    urn: str
    name: str
    token: str
    timeout_seconds: float
    note: Callable[[str], None]
    """Shows one line next to the resource in the user's terminal, and again in the summary at the end."""
    step: Callable[[str], None] = lambda line: None
    """Shows one line of progress next to the resource, which the summary leaves out.

    Raises `Refused` once the user has asked the run to stop, so call it often while waiting.
    """


@dataclass(frozen=True)
class Autoname:
    """Which input names the resource when the user gave none: `<pulumi name>-<7 hex digits>`, as the real plugin does.

    The name comes from the engine's random seed, so preview and update agree, and an existing name is kept.
    """

    key: str
    max_length: int = 255
    lower: bool = False
    unless: frozenset[str] = frozenset()
    """Inputs that choose the name in another way, such as `namePrefix`."""


@dataclass(frozen=True)
class ResourceDef(Generic[Session]):
    """One resource type: what it accepts and the functions that do the work. See the module's docstring."""

    token: str
    create: Callable[[Call[Session], Props], Made]
    read: Callable[[Call[Session], str, Props], Props | None]
    delete: Callable[[Call[Session], str, Props], None]
    update: Callable[[Call[Session], str, Props, Props], Props] | None = None
    """None: any change replaces the resource."""
    inputs: frozenset[str] = frozenset()
    """Top-level inputs that the plugin honours; any other input is refused by name."""
    outputs: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    changes_on_update: Callable[[Props, Props], frozenset[str]] | None = None
    """Outputs that an update from (state) to (inputs) changes, such as a template's latest version. They are unknown in
    the update's preview."""
    force_new: frozenset[str] = frozenset()
    """Property paths whose change replaces the resource (`ForceNew` in the Terraform provider), without indexes."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    autoname: Autoname | None = None
    same: Mapping[str, Callable[[Any, Any], bool]] = field(default_factory=dict)
    """An input's own equality, for example for JSON documents that differ only in spacing."""
    secret_outputs: frozenset[str] = frozenset()
    delete_before_replace: bool = False
    check: Callable[[Props], list[tuple[str, str]]] | None = None
    """More faults of the inputs as (property, reason); some values may still be unknown."""
    preview: Callable[[Props], Props] | None = None
    """Outputs that are known at preview; the rest of `outputs` is unknown then."""


@dataclass(frozen=True)
class InvokeDef(Generic[Session]):
    """One function of the provider (`aws:index/getRegion:getRegion`): plain arguments in, the whole result out."""

    token: str
    call: Callable[[Session, Props], Props]
