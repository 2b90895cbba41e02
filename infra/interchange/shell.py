"""Commands in a shell script, with what its variables say. tree-sitter reads the script; nothing is run."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from tree_sitter import Language, Node, Parser
from tree_sitter_bash import language

from modelfleet.infra.interchange.workload import unknown, unknowns
from modelfleet.serving.config.errors import Finding, InputErrors

#: Statements that may not run, or run more than once: what they assign is not known.
_CONDITIONAL = frozenset(
    {"if_statement", "case_statement", "for_statement", "while_statement", "c_style_for_statement"}
)
_OPERATORS = re.compile(r"(:?[-=+?])(.*)", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command's words, the variables where it stands, and its line, from 1."""

    words: tuple[str, ...]
    environment: Mapping[str, str]
    line: int


@dataclass(frozen=True)
class HereDocument:
    """A file inside the script; `line` is its first, from 1."""

    text: str
    line: int


def read_script(text: str, environment: Mapping[str, str] | None = None) -> Iterator[Command | HereDocument]:
    """Every command of a script in its order, and the files that it has inside."""
    if not _survives(text, environment or {}):
        raise InputErrors(
            [Finding("script", 0, "", "cannot be read: no shell's grammar has it; import its command alone")]
        )
    yield from _found(text, environment or {})


def _found(text: str, environment: Mapping[str, str]) -> Iterator[Command | HereDocument]:
    tree = _parser().parse(text.encode("utf-8", "replace"))
    yield from _Script(dict(environment)).walk(tree.root_node, sure=True)


def _survives(text: str, environment: Mapping[str, str]) -> bool:
    """Whether it can be read: the grammar's C code crashed on random text once, and nesting may be too deep."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            for _ in _found(text, environment):
                pass
        except RecursionError:
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@cache
def _parser() -> Parser:
    return Parser(Language(language()))


def _text(node: Node) -> str:
    return node.text.decode("utf-8", "replace") if node.text else ""


class _Script:
    """A walk over a script that keeps its variables."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.variables = variables
        self.arrays: dict[str, list[str]] = {}

    def walk(self, node: Node, *, sure: bool) -> Iterator[Command | HereDocument]:
        if node.type == "variable_assignment":
            self.assign(node, sure=sure)
        elif node.type == "command":
            yield self.command(node)
        elif node.type == "heredoc_body":
            yield HereDocument(_text(node), node.start_point.row + 1)
        elif node.type == "for_statement" and (name := node.child_by_field_name("variable")):
            self.variables[_text(name)] = unknown(_text(name))
        inside = sure and node.type not in _CONDITIONAL
        for child in node.children:
            # An assignment in front of a command is the command's own.
            if not (node.type == "command" and child.type == "variable_assignment"):
                yield from self.walk(child, sure=inside)

    def assign(self, node: Node, *, sure: bool) -> None:
        name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        if name is None:
            return
        key, more = _text(name), "+=" in [_text(child) for child in node.children]
        if value is not None and value.type == "array":
            words = [word for child in value.named_children for word in self.words(child)]
            self.arrays[key] = [*(self.arrays.get(key, []) if more else []), *words]
            if not sure:
                self.arrays[key] = [unknown(key)]
            return
        text = "" if value is None else self.value(value)
        before = self.variables.get(key, "") if more else ""
        self.variables[key] = before + text if sure or self.variables.get(key) == text else unknown(key)

    def command(self, node: Node) -> Command:
        own = _Script(dict(self.variables))
        words: list[str] = []
        for child in node.children:
            if child.type == "variable_assignment":
                own.assign(child, sure=True)
            elif child.type == "command_name":
                words += [word for part in child.children for word in self.words(part)]
            elif child.is_named and "redirect" not in child.type and child.type != "comment":
                words += self.words(child)
        return Command(tuple(words), own.variables, node.start_point.row + 1)

    def words(self, node: Node) -> list[str]:
        """What a word becomes: an unquoted variable may be several words or none."""
        whole = node.named_children[0] if node.type == "string" and len(node.named_children) == 1 else node
        if (array := self.array(whole)) is not None:
            return array
        text = self.value(node)
        return split(text) if node.type in ("simple_expansion", "expansion") else [text]

    def array(self, node: Node) -> list[str] | None:
        """The elements of `${NAME[@]}`."""
        match = re.fullmatch(r"\$\{(\w+)\[[@*]\]\}", _text(node)) if node.type == "expansion" else None
        return None if match is None else self.arrays.get(match[1], [unknown(match[1])])

    def value(self, node: Node) -> str:
        if node.type == "raw_string":
            return _text(node)[1:-1]
        if node.type == "ansi_c_string":
            return _text(node)[2:-1]
        if node.type == "string":
            return self.parts(node, quoted=True)
        if node.type == "concatenation":
            return "".join(self.value(child) for child in node.children)
        if node.type == "simple_expansion":
            return self.variable(_text(node)[1:])
        if node.type == "expansion":
            return self.expansion(_text(node)[2:-1])
        if node.type in ("command_substitution", "process_substitution", "arithmetic_expansion"):
            return unknown(" ".join(_text(node).split())[:60])
        return re.sub(r"\\(.)", r"\1", _text(node).replace("\\\n", ""))

    def parts(self, node: Node, *, quoted: bool) -> str:
        """A quoted string: its text between what is expanded, as it stands."""
        raw, start, result = node.text or b"", node.start_byte, ""
        at = 1
        for child in node.named_children:
            if child.type == "string_content":
                continue
            result += _unescaped(raw[at : child.start_byte - start].decode("utf-8", "replace"))
            result += self.value(child)
            at = child.end_byte - start
        return result + _unescaped(raw[at : len(raw) - quoted].decode("utf-8", "replace"))

    def variable(self, name: str) -> str:
        return self.variables.get(name, unknown(name))

    def expansion(self, inner: str) -> str:
        """`NAME`, `NAME:-default`, `NAME:+other` and their kin."""
        match = re.match(r"\w+", inner)
        if match is None:
            return unknown(inner)
        return expand(match[0], inner[match.end() :], self.variables, self.text)

    def text(self, word: str) -> str:
        return interpolate(word.strip("\"'"), self.variables)


def expand(name: str, rest: str, variables: Mapping[str, str], read: object = None) -> str:
    """`${NAME…}` of shells and of compose files; `rest` is what follows the name."""
    value = variables.get(name)
    if not rest:
        return unknown(name) if value is None else value
    match = _OPERATORS.fullmatch(rest)
    if match is None:
        return unknown(name)
    word = read(match[2]) if callable(read) else interpolate(match[2], variables)
    there = value is not None and (value != "" or not match[1].startswith(":"))
    known = value is not None and not list(unknowns(value))
    if match[1].endswith("+"):
        # Without a value in the file the option is left out, as the script does when nobody sets it.
        return str(word) if there and known else unknown(name) if there else ""
    return str(value) if there else str(word) if match[1][-1] in "-=" else unknown(name)


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """`$NAME` and `${NAME:-default}` in plain text; `$$` is a dollar."""
    pattern = re.compile(r"\$\$|\$(\w+)|\$\{(\w+)((?:[^{}]|\{[^{}]*\})*)\}")

    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return expand(match[1] or match[2], match[3] or "", variables)

    return pattern.sub(one, text)


def split(text: str) -> list[str]:
    """Text as words, quotes kept together; text that is no shell word stays whole."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _unescaped(text: str) -> str:
    return re.sub(r"\\([\\\"$`])", r"\1", text.replace("\\\n", ""))


def is_script(words: Sequence[str]) -> bool:
    """Whether a command is a shell that runs its last word: `sh -c "…"`, `/bin/bash -lc "…"`."""
    shell = bool(words) and words[0].rsplit("/", 1)[-1] in ("sh", "bash", "dash", "zsh", "ash")
    return shell and any(re.fullmatch(r"-[a-z]*c", word) for word in words[1:-1])
