"""The records are in the words of the installed packages: an upgrade that words a fault in another way shows here."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest

from tests.unit.doctor.builders import RECORDS

#: A file of an installed package in a record's `from`.
SOURCE: Final = re.compile(r"\b(vllm|ray|transformers)/(\S+\.py)")
#: Fewest characters of a message that tell it from others, without what is filled in.
TELLING: Final = 12
FILLED: Final = "\0"
FROM_PACKAGES = [record for record in RECORDS if SOURCE.search(record["from"])]
IDS = [f"{record['rule']}-{place}" for place, record in enumerate(FROM_PACKAGES)]


@pytest.mark.parametrize("record", FROM_PACKAGES, ids=IDS)
def test_a_record_says_what_its_source_says(record: dict[str, Any]) -> None:
    package, file = SOURCE.findall(record["from"])[0]
    assert any(re.search(message, record["text"]) for message in messages(package, file)), (
        f"no message in {package}/{file} has these words; find the new ones, and correct record and rule"
    )


def test_a_record_in_other_words_is_found() -> None:
    said = list(messages("vllm", "v1/core/kv_cache_utils.py"))
    assert any(re.search(message, "No available memory for the cache blocks") for message in said)
    assert not any(re.search(message, "No memory is available for the blocks of the cache") for message in said)


@cache
def messages(package: str, file: str) -> tuple[str, ...]:
    """The first sentence of each text in a source file, as an expression in which anything may be filled in."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is not installed"
    tree = ast.parse((Path(spec.origin).parent / file).read_text())
    sentences = {re.split(r"\. |\n", text)[0].rstrip(".") for text in _texts(tree)}
    telling = sorted(one for one in sentences if len(one.replace(FILLED, "")) >= TELLING)
    return tuple(re.escape(one).replace(re.escape(FILLED), ".*?") for one in telling)


def _texts(node: ast.AST) -> Iterator[str]:
    """The texts below a node, an f-string as one; its parts alone would match too much."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(one.value) if isinstance(one, ast.Constant) else FILLED for one in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from _texts(child)
