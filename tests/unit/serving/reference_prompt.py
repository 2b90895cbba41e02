"""A second, independent implementation of RayLLM's rules: plain Python string formatting, no template, no shared code.

It follows the rules as observed on RayLLM v0.5.0, in their order. `Refused` is RayLLM's 4xx.
"""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """The request is refused."""


def reference_prompt(fmt: dict[str, Any], messages: list[dict[str, Any]]) -> str:
    """RayLLM's prompt for `messages`."""
    systems = [m["content"] for m in messages if m["role"] == "system"]
    if len(systems) > 1:
        raise Refused("Only one system message can be specified.")
    others = [m for m in messages if m["role"] != "system"]
    tags = fmt.get("add_system_tags_even_if_message_is_empty", False)
    default = fmt.get("default_system_message", "")
    system = systems[0] if systems else (default if default or tags else None)

    def stripped(text: str) -> str:
        return text.strip() if fmt.get("strip_whitespace", True) else text

    prompt = ""
    pending = ""
    if system is not None:
        if fmt.get("system_in_user", False):
            pending = fmt["system"].format(instruction=system)
        elif system or tags:
            prompt += fmt["system"].format(instruction=stripped(system))
    for message in others:
        if message["role"] == "user":
            if fmt.get("system_in_user", False):
                prompt += fmt["user"].format(instruction=stripped(message["content"]), system=pending)
                pending = ""
            else:
                prompt += fmt["user"].format(instruction=stripped(message["content"]))
        elif message["role"] == "assistant":
            prompt += fmt["assistant"].format(instruction=stripped(message["content"]))
    return prompt + fmt["trailing_assistant"]
