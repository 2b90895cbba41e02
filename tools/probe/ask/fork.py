"""A process for each question, so that nothing of a model is left for the next one."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tools.probe.ask.answer import answer
from tools.probe.ask.questions import Question


def ask(question: Question, *, seconds: float, verbose: bool) -> dict[str, Any]:
    """The question's row; one with `error`, a line, if vLLM refuses, fails, dies or takes longer than that."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    child = fork.Process(target=_answer, args=(question, there, verbose))
    child.start()
    there.close()
    try:
        found = here.recv() if here.poll(seconds) else {"error": f"no answer in {seconds:g} s; raise --timeout"}
    except EOFError:
        found = {"error": "the process died; is there memory for it? (about 3 GB)"}
    if "error" in found:
        child.kill()
    child.join()
    return question.row(found)


def _answer(question: Question, pipe: Connection, verbose: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(question.content), encoding="utf-8")
        try:
            found = answer(folder, question)
        except BaseException as problem:  # noqa: BLE001  whatever vLLM says is the answer
            if verbose:
                traceback.print_exc()
            text = f"{type(problem).__name__}: {problem}".replace(folder, "MODEL")
            found = {"error": re.sub(r"\s+", " ", text)[:400]}
        pipe.send(found)
    pipe.close()
    sys.stderr.flush()
    os._exit(0)  # vLLM's and torch's handlers at exit expect a GPU
