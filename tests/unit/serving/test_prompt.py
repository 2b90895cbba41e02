"""`prompt_format` renders as RayLLM did: literal cases, and a property test against a second implementation."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from modelfleet.serving.config.schema import PromptFormat
from modelfleet.serving.prompt import MessagesRefused, PromptFormatError, check_messages, compile_chat_template, render
from tests.examples import examples
from tests.unit.serving.reference_prompt import Refused, reference_prompt

LLAMA: dict[str, Any] = {
    "system": "<<SYS>>\n{instruction}\n<</SYS>>\n\n",
    "assistant": " {instruction} </s><s>",
    "trailing_assistant": "",
    "user": "[INST] {system}{instruction} [/INST]",
    "system_in_user": True,
}
PLAIN: dict[str, Any] = {
    "system": "S:{instruction}\n",
    "assistant": "A:{instruction}\n",
    "trailing_assistant": "A:",
    "user": "U:{instruction}\n",
}


def message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def prompt(fmt: dict[str, Any], *messages: tuple[str, str], **changes: Any) -> str:
    return render(PromptFormat(**(fmt | changes)), [message(*m) for m in messages])


CASES = {
    "llama 2 with a system message": (
        prompt, LLAMA, [("system", "Be kind."), ("user", " Hi "), ("assistant", "Hello"), ("user", "Bye")], {},
        "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]",
    ),
    "the system message is hoisted": (
        prompt, PLAIN, [("user", "a"), ("system", "s"), ("assistant", "b")], {}, "S:s\nU:a\nA:b\nA:",
    ),
    "the default counts where none is given": (
        prompt, PLAIN, [("user", "a")], {"default_system_message": "d"}, "S:d\nU:a\nA:",
    ),
    "an explicit empty one suppresses the default": (
        prompt, PLAIN, [("system", ""), ("user", "a")], {"default_system_message": "d"}, "U:a\nA:",
    ),
    "a blank message is not empty": (prompt, PLAIN, [("system", "  "), ("user", "a")], {}, "S:\nU:a\nA:"),
    "empty tags on request": (
        prompt, PLAIN, [("user", "a")], {"add_system_tags_even_if_message_is_empty": True}, "S:\nU:a\nA:",
    ),
    "in the user message an explicit empty one has its tags": (
        prompt, LLAMA, [("system", ""), ("user", "a")], {}, "[INST] <<SYS>>\n\n<</SYS>>\n\na [/INST]",
    ),
    "in the user message the system text is not stripped": (
        prompt, LLAMA, [("system", " s "), ("user", " a ")], {}, "[INST] <<SYS>>\n s \n<</SYS>>\n\na [/INST]",
    ),
    "without a user message its system text is lost": (prompt, LLAMA, [("system", "s")], {}, ""),
    "no-break and ideographic spaces are stripped": (
        prompt, PLAIN, [("user", "\u00a0\u3000a\u00a0")], {}, "U:a\nA:",
    ),
    "nothing is stripped on request": (
        prompt, PLAIN, [("user", " a ")], {"strip_whitespace": False}, "U: a \nA:",
    ),
    "doubled braces in a template are braces": (
        prompt, PLAIN, [("user", "a")], {"user": "{{x}}{instruction}"}, "{x}aA:",
    ),
    "braces and template code in content are text": (
        prompt, PLAIN, [("user", "{{ 1+1 }}{% x %}{instruction}")], {}, "U:{{ 1+1 }}{% x %}{instruction}\nA:",
    ),
    "trailing_assistant is not a format string": (
        prompt, PLAIN, [("user", "a")], {"trailing_assistant": "{{ {x} '\"\\n"}, "U:a\n{{ {x} '\"\\n",
    ),
    "tool messages render to nothing": (prompt, PLAIN, [("tool", "t"), ("user", "a")], {}, "U:a\nA:"),
    "no message at all": (prompt, PLAIN, [], {}, "A:"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_format_renders_as_written(case: Any) -> None:
    make, fmt, messages, changes, expected = case
    assert make(fmt, *messages, **changes) == expected


REFUSED: dict[str, tuple[object, str]] = {
    "two system messages": ([message("system", "a")] * 2, "Only one system message can be specified."),
    "an unknown role": ([message("developer", "a")], "messages.0.role"),
    "a list of parts": (
        [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        "messages.0.content must be a string",
    ),
    "no content": ([{"role": "user"}], "messages.0.content"),
    "an empty assistant message": ([message("assistant", "")], "must not be empty"),
    "a tool call": ([{"role": "assistant", "content": None, "tool_calls": [{}]}], "no place for tool calls"),
    "not a list": ("text", "must be a list"),
    "a message that is text": (["text"], "must be an object"),
}


@pytest.mark.parametrize(("messages", "reason"), REFUSED.values(), ids=REFUSED)
def test_messages_that_rayllm_refused_are_refused_with_the_reason(messages: Any, reason: str) -> None:
    with pytest.raises(MessagesRefused, match=reason.replace(".", r"\.")):
        render(PromptFormat(**PLAIN), messages)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"user": "no field"}, "has no {instruction}"),
        ({"user": "{system}{instruction}"}, "found {system}, which needs system_in_user"),
        ({"assistant": "{instruction} {name}"}, "found the placeholder {name}"),
        ({"system": "{instruction!r} {instruction}"}, "found a format after {instruction}"),
        ({"system": "{instruction} }"}, "for literal braces"),
        ({"system_in_user": True}, "has no {system}"),
    ],
)
def test_a_format_on_which_every_request_would_fail_is_refused_at_load(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises((PromptFormatError, ValidationError), match=re.escape(reason)):
        compile_chat_template(PromptFormat(**(PLAIN | changes)))


def test_a_template_is_one_line_so_block_trimming_cannot_change_it() -> None:
    assert "\n" not in compile_chat_template(PromptFormat(**LLAMA))


TEXT = st.text(alphabet=st.sampled_from("aB{}%#'\"\\ \n\t\u00a0\u3000\x00é漢🙂<>|$-"), max_size=8)


def template(*fields: str) -> st.SearchStrategy[str]:
    """Each field at least once, sometimes twice, in any order, with texts around it; braces are doubled."""
    literal = TEXT.map(lambda text: text.replace("{", "{{").replace("}", "}}"))
    names = st.lists(st.sampled_from(fields), max_size=2).map(lambda more: [*fields, *more]).flatmap(st.permutations)
    return names.flatmap(
        lambda chosen: st.lists(literal, min_size=len(chosen) + 1, max_size=len(chosen) + 1).map(
            lambda texts: texts[0] + "".join(f"{{{name}}}{text}" for name, text in zip(chosen, texts[1:], strict=True))
        )
    )


@st.composite
def formats(draw: st.DrawFn) -> dict[str, Any]:
    in_user = draw(st.booleans())
    return {
        "system": draw(template("instruction")),
        "assistant": draw(template("instruction")),
        "user": draw(template("instruction", "system") if in_user else template("instruction")),
        "trailing_assistant": draw(TEXT),
        "default_system_message": draw(TEXT),
        "system_in_user": in_user,
        "add_system_tags_even_if_message_is_empty": draw(st.booleans()),
        "strip_whitespace": draw(st.booleans()),
    }


MESSAGES = st.lists(
    st.one_of(
        st.builds(message, st.sampled_from(["system", "user", "user", "tool"]), TEXT),
        st.builds(message, st.just("assistant"), TEXT.filter(bool)),
    ),
    max_size=5,
)


@settings(max_examples=examples(400), deadline=None)
@given(fmt=formats(), messages=MESSAGES)
def test_the_compiled_template_and_the_reference_agree(fmt: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    try:
        expected = reference_prompt(fmt, messages)
    except Refused as error:
        with pytest.raises(MessagesRefused, match=str(error)):
            render(PromptFormat(**fmt), messages)
        return
    assert render(PromptFormat(**fmt), messages) == expected


@settings(max_examples=examples(100), deadline=None)
@given(
    messages=st.recursive(
        st.none() | st.booleans() | st.integers() | TEXT, lambda x: st.lists(x) | st.dictionaries(TEXT, x)
    )
)
def test_no_json_value_breaks_the_check(messages: Any) -> None:
    try:
        check_messages(messages)
    except MessagesRefused as error:
        assert str(error)
