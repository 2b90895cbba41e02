"""RayLLM's `prompt_format`. First version below; the compiler follows."""

from __future__ import annotations

from serving.config.schema import PromptFormat


def compile_chat_template(prompt_format: PromptFormat) -> str:
    raise NotImplementedError
