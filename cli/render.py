"""`modelfleet render`: the exact prompt that a chat request becomes, without a GPU and without an engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from modelfleet.cli import output
from modelfleet.serving.config.document import MAX_BYTES
from modelfleet.serving.config.errors import Finding, InputErrors, SetupError
from modelfleet.serving.config.load import LoadedModel, load_models
from modelfleet.serving.prompt import MessagesRefused, check_messages
from modelfleet.serving.prompt import render as render_prompt
from modelfleet.serving.weights import default_cache


def run_render(model: Path, messages: Path, *, tokens: bool, tokenizer: Path | None = None) -> int:
    """Print the prompt, and with `tokens` the ids that the engine sees; returns the exit code."""
    models = load_models([model]).valid()
    if not models:
        raise InputErrors([Finding(str(model), 0, "enabled", "is false, so no stack serves it; set it to true")])
    request = read_messages(messages)
    prompts = models[0].config.engine_config.generation.prompt_format
    own = _tokenizer(models[0], tokenizer) if tokens or prompts is None else None
    try:
        text = render_prompt(prompts, request) if prompts else _by_checkpoint(own, request)
    except MessagesRefused as error:
        raise InputErrors([Finding(str(messages), 0, "", str(error))]) from None
    output.write(text)
    if tokens and own is not None:
        # A prompt_format's text has no beginning-of-text token; the engine adds it. A checkpoint's own template has it.
        output.write(json.dumps(own.encode(text, add_special_tokens=prompts is not None)))
    return 0


def _by_checkpoint(tokenizer: Any, request: list[Any]) -> str:
    """The text of the checkpoint's own chat template; whatever that template raises is its answer to the request."""
    check_messages(request)
    try:
        return str(tokenizer.apply_chat_template(request, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # noqa: BLE001 (a template is code of the checkpoint and raises what it likes)
        raise MessagesRefused(f"the checkpoint's chat template says: {error}") from None


def read_messages(path: Path) -> list[Any]:
    """A JSON list of chat messages, or a chat request's whole body; raises `InputErrors`."""
    try:
        with path.open("rb") as stream:
            data = json.loads(stream.read(MAX_BYTES))
    except OSError as error:
        raise InputErrors([Finding(str(path), 0, "", f"cannot be read: {error.strerror or error}")]) from None
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 0)
        raise InputErrors([Finding(str(path), line, "", f"is not JSON: {getattr(error, 'msg', error)}")]) from None
    if isinstance(data, dict) and isinstance(data.get("messages"), list):
        data = data["messages"]
    if not isinstance(data, list):
        message = "a list of chat messages is expected, or a mapping with `messages`"
        raise InputErrors([Finding(str(path), 0, "", message)])
    if not data:
        raise InputErrors([Finding(str(path), 0, "", "has no messages, which the server answers with 400")])
    return data


def _tokenizer(loaded: LoadedModel, folder: Path | None) -> Any:
    """The model's tokenizer, from a folder, a local replica's copy of the model, or the Hub."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise SetupError(
            "the package transformers is missing, but the model's tokenizer needs it; run `make setup`, or: "
            f"uv pip install --python {sys.executable} transformers"
        ) from None
    engine = loaded.config.engine_config
    source = str(folder or engine.tokenizer_id or _kept(loaded.config.slug) or engine.weights_id)
    try:
        return AutoTokenizer.from_pretrained(source, revision=None if folder else engine.revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SetupError(
            f"the tokenizer of {source} cannot be loaded: {reason} Name a folder that has it with --tokenizer FOLDER"
        ) from None


def _kept(slug: str) -> Path | None:
    """The newest copy that a local replica fetched from the mirror."""
    copies = [path.parent for path in default_cache().glob(f"*models--{slug}-*/tokenizer_config.json")]
    return max(copies, key=lambda path: path.stat().st_mtime, default=None)
