"""What `modelfleet gpu check` runs: one engine, started as a replica's is, what it really took, and how fast it is.

    python -m modelfleet.serving.measure <QUESTION

QUESTION is JSON: `arguments` of vLLM's engine; `seconds` after which nothing more is timed; `timed`, whether it is
asked at all (a model that writes no tokens is not). stdout is one line of JSON, `Took`'s fields; vLLM's own log goes to
stderr. Exit 1 with a traceback there where the engine does not start.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

#: Tokens of a prompt and of an answer, and how many sequences decode at once.
PROMPT, ANSWER, AT_ONCE = 1024, 129, (1, 8, 32)
#: Ids of ordinary tokens in every vocabulary.
TOKEN_IDS = range(10, 30000)

#: Answers a batch: sequences, tokens of each prompt, tokens of each answer; returns seconds.
Run = Callable[[int, int, int], float]


@dataclass(frozen=True)
class Took:
    """What only the process itself knows: GiB as CUDA reports them, milliseconds."""

    usable_gib: float | None = None
    prefill_1024_ms: float | None = None
    token_ms_1: float | None = None
    token_ms_8: float | None = None
    token_ms_32: float | None = None
    untimed: str = ""


def main() -> int:
    """Start, time, print; the engine ends with this process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    asked, began = json.loads(sys.stdin.read()), time.monotonic()
    took = _asked_engine(asked, began + float(asked["seconds"]))
    answers.write(json.dumps(dataclasses.asdict(took)) + "\n")
    answers.close()
    return 0


def _asked_engine(asked: Mapping[str, Any], ends: float) -> Took:
    from vllm import LLM, SamplingParams, TokensPrompt

    engine = LLM(**asked["arguments"])
    took = Took(usable_gib=_usable_gib())
    if not asked["timed"]:
        return took

    dice = random.Random(0)  # noqa: S311 - prompts, not secrets

    def run(count: int, prompt: int, answer: int) -> float:
        prompts = [TokensPrompt(prompt_token_ids=dice.choices(TOKEN_IDS, k=prompt)) for _ in range(count)]
        sampling = SamplingParams(max_tokens=answer, ignore_eos=True, detokenize=False, temperature=0)
        began = time.perf_counter()
        outputs = engine.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - began
        if any(len(one.outputs[0].token_ids) != answer for one in outputs):
            raise RuntimeError(f"vLLM answered with other than {answer} tokens")
        return seconds

    length = engine.llm_engine.model_config.max_model_len
    if length < PROMPT + ANSWER:
        return dataclasses.replace(took, untimed=f"max_model_len {length} holds no {PROMPT + ANSWER} tokens")
    return timed(run, ends, took)


def timed(run: Run, ends: float, took: Took, now: Callable[[], float] = time.monotonic) -> Took:
    """`took` with the times that fit before `ends`; `untimed` says which did not."""
    run(1, 64, 8)
    first = [run(1, PROMPT, 1) for _ in range(3)]
    took = dataclasses.replace(took, prefill_1024_ms=round(1e3 * median(first), 2))
    last = 0.0
    for count in AT_ONCE:
        # A wave takes at most as much longer than the last as it has more sequences.
        if now() + 4 * last > ends:
            return dataclasses.replace(took, untimed=f"the time was up before {count} at once")
        began = now()
        prefill, whole = run(count, PROMPT, 1), run(count, PROMPT, ANSWER)
        last = now() - began
        changed: dict[str, Any] = {f"token_ms_{count}": round(1e3 * (whole - prefill) / (ANSWER - 1), 3)}
        took = dataclasses.replace(took, **changed)
    return took


def _usable_gib() -> float | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return round(int(torch.cuda.mem_get_info()[1]) / 2**30, 2)


if __name__ == "__main__":
    sys.exit(main())
