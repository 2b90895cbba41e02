"""JSON that every YAML reader reads alike, for the API server and KubeRay, which expect YAML; and the way back."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import yaml

#: YAML readers refuse these in a double-quoted string, and refuse surrogate pairs of `\\u` escapes; JSON writers emit
#: one or the other.
_NOT_YAML: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")


def json_for_yaml(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON with characters beyond the first plane unescaped and control characters escaped.

    A YAML writer and a YAML reader of different languages disagree about plain words such as `1e3` or `on`.
    """
    text = json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False)
    return _NOT_YAML.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def read_json_or_yaml(text: str) -> Any:
    """What `text` says. As JSON first: PyYAML reads YAML 1.1, in which JSON's `1e-06` is a word and no number."""
    try:
        return json.loads(text)
    except ValueError:  # somebody wrote it by hand
        return yaml.safe_load(text)
