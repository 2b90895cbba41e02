"""`modelfleet render` prints the prompt that the engine gets. Otherwise templates are debugged on a GPU node."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from modelfleet.cli.render import read_messages, run_render
from modelfleet.serving.config.errors import InputErrors, SetupError

ROOT = Path(__file__).parents[3]
LLAMA = ROOT / "models" / "meta-llama--Llama-2-7b-chat-hf.yaml"
SMOL = ROOT / "models" / "HuggingFaceTB--SmolLM2-135M-Instruct.yaml"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi {you}"}]


@pytest.fixture
def messages(tmp_path: Path) -> Path:
    path = tmp_path / "messages.json"
    path.write_text(json.dumps(MESSAGES))
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A word-level tokenizer that adds <s> at the start, and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1, "Be": 2, "brief": 3, "INST": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<unk>")
    fast.chat_template = "<s>{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    fast.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_a_request_without_messages_is_refused_as_the_server_refuses_it(messages: Path) -> None:
    for empty in ("[]", '{"messages": []}'):
        messages.write_text(empty)
        with pytest.raises(InputErrors, match="has no messages"):
            run_render(LLAMA, messages, tokens=False)


def test_the_prompt_of_a_prompt_format_needs_no_tokenizer(messages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_render(LLAMA, messages, tokens=False) == 0
    assert capsys.readouterr().out == "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi {you} [/INST]\n"


@pytest.mark.slow
def test_tokens_of_a_prompt_format_begin_with_the_first_token(
    messages: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_render(LLAMA, messages, tokens=True, tokenizer=tokenizer)
    ids = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert ids[0] == 0 and ids.count(0) == 1, "templates rely on one <s> at the start"
    assert 2 in ids and 3 in ids


@pytest.mark.slow
def test_without_a_prompt_format_the_checkpoints_template_is_used_with_one_first_token(
    messages: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_render(SMOL, messages, tokens=True, tokenizer=tokenizer)
    text, ids = capsys.readouterr().out.splitlines()
    assert text == "<s>[system] Be brief. [user] Hi {you} "
    assert json.loads(ids).count(0) == 1, "the template itself has <s>"


@pytest.mark.slow
def test_a_tokenizer_that_cannot_be_loaded_gives_an_error_that_names_the_option(messages: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--tokenizer FOLDER"):
        run_render(SMOL, messages, tokens=False, tokenizer=tmp_path / "none")


def test_after_an_operator_install_it_says_how_to_get_the_tokenizers_package(
    messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """requirements/operator.txt has no transformers, and a traceback would not say what to run."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SetupError, match="transformers is missing.*run `make setup`"):
        run_render(SMOL, messages, tokens=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "is not JSON"),
        ("3", "a list of chat messages is expected"),
        ("[" * 100_000, "is not JSON"),
        ('[{"role": "system", "content": "a"}, {"role": "system", "content": "b"}]', "Only one system message"),
        ('[{"role": "bot", "content": "a"}]', "allowed are system, user"),
    ],
)
def test_invalid_messages_are_findings(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(InputErrors, match=message):
        run_render(LLAMA, path, tokens=False)


def test_a_whole_request_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"model": "x", "messages": MESSAGES}))
    assert read_messages(path) == MESSAGES
