"""RayLLM's `prompt_format`, compiled once into a chat template that renders exactly as RayLLM did.

Pure: jinja2 only, no vLLM. The rules, as observed on RayLLM v0.5.0 (`models/README.md` has them for users):

- There is at most one system message; it is taken out wherever it is. Without one the default applies; an explicit
  empty one suppresses the default.
- `system_in_user` puts the system text into the first user message, unstripped.
- `trailing_assistant` always comes last, verbatim. Nothing is inserted between the pieces.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from modelfleet.serving.config.prompt_rules import template_faults
from modelfleet.serving.config.schema import PromptFormat

ROLES = ("system", "user", "assistant", "tool")
ONE_SYSTEM_MESSAGE = "Only one system message can be specified."


class PromptFormatError(ValueError):
    """A `prompt_format` that cannot be compiled; the message names the key and the fix."""


class MessagesRefused(ValueError):
    """Messages that cannot become a prompt; the client gets the text as the reason for its 400."""


def compile_chat_template(prompt_format: PromptFormat) -> str:
    """The Jinja chat template, on one line, that renders as `prompt_format` says.

    Raises `PromptFormatError` for a template that RayLLM would have failed on with every request.
    """
    in_user = prompt_format.system_in_user
    system = _pieces("system", prompt_format.system, {"instruction": "system"})
    assistant = _pieces("assistant", prompt_format.assistant, {"instruction": "text"})
    user = _pieces("user", prompt_format.user, {"instruction": "text"} | ({"system": "system_text"} if in_user else {}))
    default = _default_system(prompt_format)
    strip = ".strip()" if prompt_format.strip_whitespace else ""
    alone = f"{{% set system = given.system{strip} %}}{_emit(system)}"
    if not prompt_format.add_system_tags_even_if_message_is_empty:
        alone = f"{{% if given.system %}}{alone}{{% endif %}}"
    within = "{% set system_text = '' %}"
    if in_user:
        within = (
            "{% set system_text %}{% if not given.used and given.system is not none %}{% set system = given.system %}"
            f"{_emit(system)}{{% endif %}}{{% endset %}}{{% set given.used = true %}}"
        )
    return "".join(
        [
            f"{{% set given = namespace(system={default}, count=0, used=false) %}}",
            "{% for message in messages %}{% if message['role'] == 'system' %}",
            f"{{% if given.count %}}{{{{ raise_exception({_literal(ONE_SYSTEM_MESSAGE)}) }}}}{{% endif %}}",
            "{% set given.count = 1 %}{% set given.system = message['content'] %}{% endif %}{% endfor %}",
            "" if in_user else f"{{% if given.system is not none %}}{alone}{{% endif %}}",
            "{% for message in messages %}{% if message['role'] == 'user' %}",
            f"{{% set text = message['content']{strip} %}}{within}{_emit(user)}",
            "{% elif message['role'] == 'assistant' %}",
            f"{{% set text = message['content']{strip} %}}{_emit(assistant)}",
            f"{{% endif %}}{{% endfor %}}{{{{ {_literal(prompt_format.trailing_assistant)} }}}}",
        ]
    )


def render(prompt_format: PromptFormat, messages: Sequence[Mapping[str, Any]]) -> str:
    """The exact prompt for `messages`, before tokens; raises `MessagesRefused` with the reason for a refusal."""
    check_messages(messages)
    try:
        return _template(prompt_format.model_dump_json()).render(messages=messages)
    except TemplateError as error:
        raise MessagesRefused(str(error)) from None


def check_messages(messages: object) -> None:
    """Refuses what RayLLM refused and a chat template cannot see; raises `MessagesRefused`."""
    if not isinstance(messages, list):
        raise MessagesRefused("messages must be a list")
    systems = 0
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        if not isinstance(message, Mapping):
            raise MessagesRefused(f"{where} must be an object")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise MessagesRefused(f"{where}.role: found {json.dumps(role)}; allowed are {', '.join(ROLES)}")
        if role == "assistant" and message.get("tool_calls"):
            raise MessagesRefused(f"{where}.tool_calls: this model's prompt_format has no place for tool calls")
        if not isinstance(content, str):
            raise MessagesRefused(f"{where}.content must be a string")
        if role == "assistant" and not content:
            raise MessagesRefused(f"{where}.content must not be empty for an assistant message")
        systems += role == "system"
    if systems > 1:
        raise MessagesRefused(ONE_SYSTEM_MESSAGE)


@lru_cache(maxsize=64)
def _template(prompt_format_json: str) -> Template:
    """Compiled as transformers compiles chat templates, so that both render alike."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise
    return environment.from_string(compile_chat_template(PromptFormat.model_validate_json(prompt_format_json)))


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _default_system(prompt_format: PromptFormat) -> str:
    default = prompt_format.default_system_message
    if not default and not prompt_format.add_system_tags_even_if_message_is_empty:
        return "none"
    return _literal(default)


def _pieces(key: str, template: str, names: Mapping[str, str]) -> list[str]:
    """A Python format string as Jinja expressions; `names` maps its fields to template variables."""
    if faults := list(template_faults(key, template, system_in_user="system" in names)):
        raise PromptFormatError(f"prompt_format.{key}: {'; '.join(faults)}")
    expressions = []
    for text, field, _, _ in string.Formatter().parse(template):
        if text:
            expressions.append(_literal(text))
        if field is not None:
            expressions.append(names[field])
    return expressions


def _emit(expressions: Sequence[str]) -> str:
    return "".join(f"{{{{ {expression} }}}}" for expression in expressions)


def _literal(text: str) -> str:
    """`text` as a Jinja string literal without any character that is special to Jinja."""
    escaped = text.encode("unicode_escape").decode("ascii")
    for character in "'\"{}%#":
        escaped = escaped.replace(character, f"\\x{ord(character):02x}")
    return f"'{escaped}'"
