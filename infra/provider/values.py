"""Values on the plugin's wire and in plain Python, and the differences between two of them.

On the wire every number is a float, a secret is wrapped, and a value that is unknown at preview is one fixed string
(`pulumi.runtime.rpc.UNKNOWN`). It is not the SDK's `Computed`, which the SDK's own `marshal` refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pulumi
from google.protobuf import struct_pb2

from modelfleet.infra.provider import sdk
from modelfleet.infra.provider.sdk import ASSET_SIGNATURE, SECRET_SIGNATURE, SIGNATURE_KEY, PropertyValue

UNKNOWN: str = sdk.UNKNOWN
"""A value that is not known before the deployment; compare with `==`."""

Props = dict[str, Any]
"""Plain Python properties: camelCase keys, whole numbers as `int`, no secret wrappers."""

Wire = dict[str, PropertyValue]
"""The same as the SDK's `PropertyValue`s, with their secret marks."""


def plain(value: PropertyValue) -> Any:
    """`value` without its marks; a whole number becomes `int`, because boto3 and JSON APIs refuse 3.0."""
    raw = value.value
    if isinstance(raw, bool) or raw is None or isinstance(raw, str):
        return raw
    if isinstance(raw, float):
        return int(raw) if raw.is_integer() else raw
    if isinstance(raw, Mapping):
        return {key: plain(item) for key, item in raw.items()}
    if isinstance(raw, (list, tuple)):
        return [plain(item) for item in raw]
    return raw  # assets, archives and references pass as they are


def plain_map(values: Mapping[str, PropertyValue]) -> Props:
    """`plain` for each entry."""
    return {key: plain(value) for key, value in values.items()}


def wire(value: Any) -> PropertyValue:
    """A plain value for the wire: `int` becomes `float`, the only number that the wire has."""
    if isinstance(value, PropertyValue):
        return value
    if isinstance(value, bool) or value is None:
        return PropertyValue(value)
    if isinstance(value, (int, float)):
        return PropertyValue(float(value))
    if isinstance(value, Mapping):
        return PropertyValue({str(key): wire(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return PropertyValue([wire(item) for item in value])
    return PropertyValue(value)


def wire_map(values: Mapping[str, Any]) -> Wire:
    """`wire` for each entry."""
    return {key: wire(value) for key, value in values.items()}


def with_secrets_of(values: Mapping[str, Any], sources: Mapping[str, PropertyValue]) -> Wire:
    """`values` for the wire; each one that holds a secret of `sources` is secret.

    A key whose plain value equals its source's keeps the source, so that only the secret part is encrypted. Any other
    key is secret as a whole when its own source holds a secret, or when it repeats a secret text of any source
    (`tagsAll` repeats `tags`).
    """
    texts = frozenset(text for source in sources.values() for text in _secret_texts(source, source.is_secret))
    marked: Wire = {}
    for key, value in values.items():
        source = sources.get(key)
        if source is not None and plain(source) == value:
            marked[key] = source
        elif (source is not None and source.contains_secret()) or _repeats(value, texts):
            marked[key] = wire(value).with_secret(True)
        else:
            marked[key] = wire(value)
    return marked


def _secret_texts(value: PropertyValue, secret: bool) -> Iterator[str]:
    """The texts inside secret parts of a value."""
    inside = secret or value.is_secret
    if isinstance(value.value, str):
        if inside and value.value:
            yield value.value
    elif isinstance(value.value, Mapping):
        for item in value.value.values():
            yield from _secret_texts(item, inside)
    elif isinstance(value.value, (list, tuple)):
        for item in value.value:
            yield from _secret_texts(item, inside)


def _repeats(value: Any, texts: frozenset[str]) -> bool:
    """Whether a plain value holds one of `texts`; a very short one must be the whole text, not a part of it."""
    if isinstance(value, str):
        return value in texts or any(len(text) >= 6 and text in value for text in texts)
    if isinstance(value, Mapping):
        return any(_repeats(item, texts) for item in value.values())
    return isinstance(value, (list, tuple)) and any(_repeats(item, texts) for item in value)


class HashedAsset(pulumi.FileAsset):
    """A file input that equals any other with the same content; the engine's state keeps only its hash."""

    def __init__(self, path: str, digest: str) -> None:
        super().__init__(path)
        self.digest = digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HashedAsset) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def unmarshal_map(message: struct_pb2.Struct) -> Wire:
    """`PropertyValue.unmarshal_map`, but it accepts an asset that comes back from the state."""
    return {key: _unmarshal(value) for key, value in message.fields.items()}


def _unmarshal(value: struct_pb2.Value) -> PropertyValue:
    if value.HasField("list_value"):
        return PropertyValue([_unmarshal(item) for item in value.list_value.values])
    fields = value.struct_value.fields if value.HasField("struct_value") else {}
    sign = fields[SIGNATURE_KEY].string_value if SIGNATURE_KEY in fields else None
    if value.HasField("struct_value") and sign is None:
        return PropertyValue({key: _unmarshal(item) for key, item in fields.items()})
    if sign == SECRET_SIGNATURE and "value" in fields:
        return _unmarshal(fields["value"]).with_secret(True)
    if sign == ASSET_SIGNATURE and "hash" in fields and "text" not in fields:
        path = fields["path"].string_value if "path" in fields else ""
        return PropertyValue(HashedAsset(path, fields["hash"].string_value))

    return PropertyValue.unmarshal(value)


def marshal_map(values: Wire) -> struct_pb2.Struct:
    """`PropertyValue.marshal_map`, but it keeps an asset's hash, which is the engine's only memory of the asset."""
    message = PropertyValue.marshal_map(values)
    for key, value in values.items():
        _add_hashes(value, message.fields[key])
    return message


def _add_hashes(value: PropertyValue, message: struct_pb2.Value) -> None:
    inner = message.struct_value.fields["value"] if value.is_secret else message
    if isinstance(value.value, HashedAsset):
        inner.struct_value.fields["hash"].string_value = value.value.digest
    elif isinstance(value.value, Mapping):
        for key, item in value.value.items():
            _add_hashes(item, inner.struct_value.fields[key])
    elif isinstance(value.value, Sequence) and not isinstance(value.value, str):
        for item, place in zip(value.value, inner.list_value.values, strict=True):
            _add_hashes(item, place)


def contains_unknown(value: Any) -> bool:
    """Whether any part of a plain value is not known yet."""
    if isinstance(value, Mapping):
        return any(contains_unknown(item) for item in value.values())
    if isinstance(value, list):
        return any(contains_unknown(item) for item in value)
    return bool(value == UNKNOWN)


def covers(wanted: Any, live: Any) -> bool:
    """Whether `live` has all that `wanted` asks for; keys that only the service knows do not matter."""
    if isinstance(wanted, Mapping) and isinstance(live, Mapping):
        return all(key in live and covers(item, live[key]) for key, item in wanted.items())
    if isinstance(wanted, list) and isinstance(live, list):
        return len(wanted) == len(live) and all(covers(*pair) for pair in zip(wanted, live, strict=True))
    return bool(wanted == live)


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Property paths that differ, as the engine prints them (`tags.a`, `subnetIds[1]`), with what happened.

    The second part is `add`, `delete` or `update`.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            at = _joined(path, key)
            if key not in new:
                yield at, "delete"
            elif key not in old:
                yield at, "add"
            else:
                yield from differences(old[key], new[key], at)
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            at = f"{path}[{index}]"
            if index >= len(new):
                yield at, "delete"
            elif index >= len(old):
                yield at, "add"
            else:
                yield from differences(old[index], new[index], at)
    elif old != new:
        yield path, "update"


def _joined(path: str, key: str) -> str:
    simple = key.replace("_", "").replace("-", "").isalnum()
    name = key if simple else f'["{key}"]'
    if not path:
        return name
    return f"{path}.{name}" if simple else f"{path}{name}"
