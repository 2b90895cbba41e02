"""API keys: only their sha256 reaches HAProxy, with the name that logs and limits show.

A line of the map is `<sha256> <name>`. For a secret that was rotated it is `<sha256> <name>@<end>`, until which it is
valid.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
#: Visible ASCII without comma, quote and backslash: what every client sends unchanged in a header.
KEY = re.compile(r"[\x21\x23-\x2b\x2d-\x5b\x5d-\x7e]+")
#: After the name of a key whose old secret it is.
ROTATED = "@rotated"
ISO = "%Y-%m-%dT%H:%M:%SZ"
MIN_KEY_LENGTH = 16
MAX_KEY_LENGTH = 512


@dataclass(frozen=True)
class Rotated:
    """The old secret of a rotated key: its sha256, and when it ends in seconds since 1970 (UTC)."""

    sha256: str
    ends_at: int

    @classmethod
    def parse(cls, text: str) -> Rotated:
        """One of what the stack's secret `rotatedKeys.<name>` holds, `<sha256> <ISO time>`; raises `ValueError`."""
        match = re.fullmatch(r"([0-9a-f]{64}) (\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z)", text.strip())
        if match is None:
            raise ValueError("is no sha256 with a time such as 2026-12-31T00:00:00Z; `modelfleet key rotate` writes it")
        return cls(match[1], int(datetime.strptime(match[2], ISO).replace(tzinfo=UTC).timestamp()))

    @classmethod
    def parse_all(cls, text: str) -> list[Rotated]:
        """All of them, with commas between; raises `ValueError`."""
        return [cls.parse(one) for one in text.split(",")]

    def text(self) -> str:
        """The reverse of `parse`."""
        return f"{self.sha256} {datetime.fromtimestamp(self.ends_at, UTC).strftime(ISO)}"


def hash_key(key: str) -> str:
    """The key's sha256 in lower-case hexadecimal, as HAProxy's `sha2(256),hex,lower` computes it."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_faults(keys: Mapping[str, str]) -> list[str]:
    """What is wrong with the names or keys, one sentence each; a key itself is never shown."""
    faults = [] if keys else ["found no key; set at least one, e.g. `apiKeys.<name>`"]
    for name, key in sorted(keys.items()):
        if not NAME.fullmatch(name):
            faults.append(f"found the key name {name[:80]!r}; allowed are letters, digits, `.`, `_`, `-`, at most 63")
        if not MIN_KEY_LENGTH <= len(key) <= MAX_KEY_LENGTH:
            faults.append(
                f"the key named {name[:80]!r} has {len(key)} characters; "
                f"allowed are {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH}"
            )
        elif not KEY.fullmatch(key):
            faults.append(
                f"the key named {name[:80]!r} has a blank, comma, quote, backslash or non-ASCII character; "
                "use visible ASCII"
            )
    by_hash: dict[str, list[str]] = {}
    for name, key in keys.items():
        by_hash.setdefault(hash_key(key), []).append(name)
    faults += [
        f"the keys named {', '.join(sorted(names))} are the same; give each name its own key"
        for names in by_hash.values()
        if len(names) > 1
    ]
    return faults


def with_rotated(keys: Mapping[str, str], rotated: Mapping[str, str] | None) -> dict[str, str]:
    """The stack's secrets `apiKeys` and `rotatedKeys` in one mapping, as `render_key_map` takes them.

    A key that was revoked takes its old secret along.
    """
    old = {f"{name}{ROTATED}": text for name, text in (rotated or {}).items() if name in keys}
    return {**keys, **old}


def render_key_map(keys: Mapping[str, str]) -> str:
    """The map file, sorted by name; raises `ValueError` with every fault.

    `<name>@rotated` are the old secrets of a key, as `Rotated.text` writes each.
    """
    new = {name: key for name, key in keys.items() if not name.endswith(ROTATED)}
    faults = key_faults(new)
    old: dict[str, list[Rotated]] = {}
    for name in keys.keys() - new.keys():
        try:
            old[name.removesuffix(ROTATED)] = Rotated.parse_all(keys[name])
        except ValueError as error:
            faults.append(f"the rotated key named {name.removesuffix(ROTATED)[:80]!r} {error}")
    if faults:
        raise ValueError("; ".join(faults))
    lines = {one.sha256: f"{name}@{one.ends_at}" for name, many in old.items() if name in new for one in many}
    lines |= {hash_key(key): name for name, key in new.items()}  # an old secret that came back is no old one
    return "".join(f"{sha256} {name}\n" for sha256, name in sorted(lines.items(), key=lambda line: (line[1], line[0])))


def without(key_map: str, names: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """A key map without the secrets of `names`, those that were rotated too, and the hashes that are gone."""
    lines = key_map.splitlines()
    gone = [line for line in lines if line.partition(" ")[2].partition("@")[0] in names]
    return "".join(f"{line}\n" for line in lines if line not in gone), tuple(line.partition(" ")[0] for line in gone)


def keys_id(key_map: str) -> str:
    """A hash of hashes, which says that keys changed and nothing else; 64 bits are enough for it."""
    return hashlib.sha256(key_map.encode()).hexdigest()[:16]
