"""API keys: only their sha256 reaches HAProxy, with the name that logs and limits show."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
#: Visible ASCII without comma, quote and backslash: what every client sends unchanged in a header.
KEY = re.compile(r"[\x21\x23-\x2b\x2d-\x5b\x5d-\x7e]+")
MIN_KEY_LENGTH = 16
MAX_KEY_LENGTH = 512


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


def render_key_map(keys: Mapping[str, str]) -> str:
    """The map file `<sha256> <name>`, sorted by name; raises `ValueError` with every fault."""
    if faults := key_faults(keys):
        raise ValueError("; ".join(faults))
    return "".join(f"{hash_key(key)} {name}\n" for name, key in sorted(keys.items()))
