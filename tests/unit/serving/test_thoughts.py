"""What is given to vLLM's reasoning parser; `tests/serving/test_usage.py` asks the real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from modelfleet.serving.thoughts import Thoughts

START, END = 1, 2


class Markers:
    """Counts between start and end, as vLLM's parsers of such tokens do."""

    start_token_id, end_token_id = START, END

    def __init__(self, **options: Any) -> None:
        self.options = options

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        depth = count = 0
        for token in token_ids:
            if token == START:
                depth += 1
            elif token == END:
                depth = max(0, depth - 1)
            else:
                count += depth > 0
        return count


class Choosing:
    """DeepSeek V3's has the parser that it chose."""

    def __init__(self, **_: Any) -> None:
        self._parser = Markers()

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        return self._parser.count_reasoning_tokens(token_ids)


@pytest.mark.parametrize("parser", [Markers, Choosing])
@pytest.mark.parametrize(
    ("prompt", "answer", "thoughts"),
    [
        ([9], [START, 7, 7, END, 8], 2),
        ([9, START], [7, 7, 7, END, 8], 3),
        ([9, START, 9], [7, 7], 2),
        ([START, 9, END], [7, 7], 0),
        ([], [7, 7], 0),
        ([START], [], 0),
    ],
    ids=["in-the-answer", "opened-by-the-prompt", "cut", "an-earlier-turn", "none", "nothing-yet"],
)
def test_a_thought_that_the_prompt_opened_is_one(
    parser: type, prompt: list[int], answer: list[int], thoughts: int
) -> None:
    assert Thoughts(parser).count(prompt, answer, {}) == thoughts


def test_each_answer_has_a_parser_of_its_own_with_what_the_request_said() -> None:
    made: list[Markers] = []

    def make(**options: Any) -> Markers:
        made.append(Markers(**options))
        return made[-1]

    counter = Thoughts(make)
    for thinking in (True, False):
        counter.count([], [7], {"chat_template_kwargs": {"enable_thinking": thinking}})
    assert [one.options["chat_template_kwargs"]["enable_thinking"] for one in made] == [True, False]
