"""Asks vLLM's own KV-cache specs, on a machine without a GPU, what models keep in GPU memory.

    python -m tools.probe.ask --setup /tmp/vllm-cuda                                    once: 6 GB, 1 to 4 minutes
    /tmp/vllm-cuda/bin/python -m tools.probe.ask --again --out /tmp/kv-truth.jsonl      every row of kv-truth.jsonl
    /tmp/vllm-cuda/bin/python -m tools.probe.ask --config FOLDER --tp 2                 one model, one of two GPUs

Run it in the checkout. It starts in 15 s, then takes 2 to 8 s for a model. Rows go to stdout or are appended to --out;
what is said beside them goes to stderr. `--again` says which rows differ from those kept (≠, new/old). Exit code 1: a
row differs or has no answer; 2: something is missing here. `tools/probe/ask/answer.py` explains the keys of a row,
tools/README.md what a row is no proof of.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from modelfleet.serving.config.errors import EXIT_ENVIRONMENT, EXIT_INPUT, SetupError
from tools.probe.ask.questions import Question, again, listed, single
from tools.probe.rows import BATCHED_TOKENS, CONFIGS, TRUTH

#: A question, and the row that answered it before.
Asked = tuple[Question, dict[str, Any] | None]


def main(words: list[str] | None = None) -> int:
    """Makes the environment, or asks; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(words)
    if not 0 <= options.rank < options.tp:
        parser.error(f"--rank {options.rank}: --tp {options.tp} has the ranks 0 to {options.tp - 1}")
    try:
        if options.setup:
            from tools.probe.ask.environment import make  # what it imports is in the project's environment alone

            print(f"Next: {make(options.setup)} -m tools.probe.ask --again --out new-truth.jsonl")
            return 0
        return EXIT_INPUT if _ask(_questions(options), options) else 0
    except SetupError as problem:
        print(problem, file=sys.stderr)
        return EXIT_ENVIRONMENT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.probe.ask", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--setup", type=Path, metavar="FOLDER", help="make the environment in which vLLM can be asked")
    what.add_argument("--again", action="store_true", help=f"ask what the rows of {TRUTH.name} answer, each as it was")
    what.add_argument("--config", type=Path, help="a config.json or its folder")
    what.add_argument("--configs", type=Path, metavar="FILE", help="a file of lines {config, content}")
    parser.add_argument("--only", default="", type=_pattern, metavar="REGEX", help="models whose name matches")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where rows are appended; without it they are printed")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one model (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="print the traceback of a model that fails")
    question = parser.add_argument_group("the question (--again takes it from the row)")
    for option, default, text in (
        ("--max-model-len", 8192, "tokens; a model that takes fewer gets what it takes"),
        ("--batched-tokens", BATCHED_TOKENS, "max_num_batched_tokens: windows grow with it"),
        ("--kv-gib", 60.0, "GiB of KV cache on one GPU, for kv_tokens"),
        ("--tp", 1, "tensor-parallel GPUs"),
        ("--rank", 0, "which of them is asked"),
        ("--dp", 1, "data parallel ranks, each with --tp GPUs; the first is asked"),
    ):
        question.add_argument(option, type=type(default), default=default, help=f"{text} (default: %(default)s)")
    question.add_argument("--expert-parallel", action="store_true", help="each GPU has whole experts")
    card = parser.add_argument_group("the pretended GPU, an H100 unless told otherwise")
    card.add_argument("--capability", type=_capability, default="9.0", help="compute capability (default: %(default)s)")
    card.add_argument("--memory-gib", type=float, default=79.18, help="GiB of memory (default: %(default)s)")
    return parser


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as problem:
        raise argparse.ArgumentTypeError(f"'{text}' is not a regular expression: {problem}") from problem
    return text


def _capability(text: str) -> str:
    if not re.fullmatch(r"\d+\.\d", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not like 9.0")
    return text


def _questions(options: argparse.Namespace) -> list[Asked]:
    """What the options ask. Raises `SetupError` when that is nothing."""
    like = Question(
        length=options.max_model_len, batched_tokens=options.batched_tokens, kv_gib=options.kv_gib,
        ranks=options.tp, rank=options.rank, data_ranks=options.dp, experts_whole=options.expert_parallel,
    )  # fmt: skip
    found: list[Asked]
    if options.again:
        found = [*again(TRUTH, CONFIGS, options.only)]
    elif options.config:
        found = [(single(options.config, like), None)]
    else:
        found = [(question, None) for question in listed(options.configs, options.only, like)]
    if not found:
        raise SetupError(f"no model matches --only '{options.only}'")
    return found


def _ask(questions: list[Asked], options: argparse.Namespace) -> int:
    """Prints or appends the rows; returns how many failed or differ from the row before."""
    from tools.probe.ask.card import Card, pretend
    from tools.probe.ask.fork import ask

    wrong = 0
    with _opened(options.out) as out:
        pretend(Card(options.capability, options.memory_gib, max(question.ranks for question, _ in questions)))
        for question, before in questions:
            begun = time.monotonic()
            row = ask(question, seconds=options.timeout, verbose=options.verbose)
            changes = row.get("error") or changed(row, before or row)
            wrong += bool(changes)
            took, mark = time.monotonic() - begun, "≠" if changes else "="
            print(f"{took:5.1f} s {mark} {row['model']} tp {question.ranks} {changes}".rstrip(), file=sys.stderr)
            if "error" not in row:
                print(json.dumps(row, separators=(",", ":")), file=out, flush=True)
    print(
        f"{len(questions) - wrong} of {len(questions)} {'as before' if options.again else 'answered'}", file=sys.stderr
    )
    return wrong


def changed(row: dict[str, Any], before: dict[str, Any]) -> str:
    """The keys whose value differs: new/old, in the row's order."""
    keys = dict.fromkeys([*row, *before])
    return "  ".join(f"{key} {row.get(key)}/{before.get(key)}" for key in keys if row.get(key) != before.get(key))


def _opened(out: Path | None) -> AbstractContextManager[TextIO]:
    if out is None:
        return nullcontext(sys.stdout)
    try:
        return out.open("a", encoding="utf-8")
    except OSError as problem:
        raise SetupError(f"--out {out}: {problem.strerror}; name a file that can be written") from problem


if __name__ == "__main__":
    sys.exit(main())
