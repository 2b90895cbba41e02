"""What a warm-up Job runs: it starts a model's engine as a replica does, and seals what that compiled.

    ARGS    the Serve application's args as JSON, with weights.seal

    python -m modelfleet.serving.warm_up
    python -m modelfleet.serving.warm_up status s3://bucket/seals/<slug>/<key>

It does nothing where the seal is whole, so Kubernetes may run it again. Exit 1 for wrong arguments or no whole seal, 2
for other errors.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from modelfleet.serving.config.errors import EXIT_INPUT, ModelfleetError
from modelfleet.serving.config.serve_options import actor_options
from modelfleet.serving.errors import EngineError
from modelfleet.serving.seal.copy import is_sealed, write
from modelfleet.serving.seal.machine import Machine, this_machine
from modelfleet.serving.seal.places import seal_root

if TYPE_CHECKING:
    from modelfleet.serving.app import AppArgs

#: Asked once each, so that what only a request compiles is in the seal too; a model that has no such endpoint refuses.
REQUESTS = (
    ("/v1/completions", {"prompt": "The capital of France is", "max_tokens": 16}),
    ("/v1/embeddings", {"input": "The capital of France"}),
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the Job, or says whether a seal is whole; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if words[:1] == ["status"] and len(words) == 2:
            whole = is_sealed(words[1])
            print("sealed" if whole else "absent")
            return 0 if whole else EXIT_INPUT
        return _job(os.environ.get("ARGS", ""))
    except ModelfleetError as error:
        _report(str(error))
        return error.exit_code


def _job(text: str) -> int:
    from modelfleet.serving.app import AppArgs, wait_for_copies  # Ray's import, which `status` does without

    try:
        parsed = AppArgs.model_validate(json.loads(text))
        uri = parsed.weights.seal or ""
    except (ValueError, ValidationError):
        uri = ""
    if not uri:
        _report("ARGS are not the arguments of an application with weights.seal; the stack's Job sets them")
        return EXIT_INPUT
    machine = this_machine(gpus=bool(parsed.model.scaling_config.num_gpus_per_worker))
    if is_sealed(uri, machine):
        _report(f"{uri} is whole")
        return 0
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    wait_for_copies(parsed.weights)
    seal(parsed, uri, machine, warm)
    return 0


def seal(args: AppArgs, uri: str, machine: Machine, run: Callable[[AppArgs], None]) -> None:
    """Has `run` compile into the seal's own, empty folder, and writes what is there then.

    The folder is the replicas' too: files of a compiler name others by their path.
    """
    model, root = args.model, seal_root(uri)
    if root.exists():
        raise EngineError(f"{root} is there already; a warm-up begins with an empty disk")
    began = time.monotonic()
    run(args)
    _report(f"{model.model_id} started and answered within {time.monotonic() - began:.0f} s")
    write(root, uri, key=root.name, model_id=model.model_id, machine=machine, report=_report)


def warm(args: AppArgs) -> None:
    """Starts the engine and has it answer; with the environment that Serve would give the replica."""
    os.environ.update(actor_options(args.model)["runtime_env"]["env_vars"])
    # Ray sets it from the replica's CPUs (`lift_thread_limit` says when it stays).
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    asyncio.run(_answered(args))


async def _answered(args: AppArgs) -> None:
    from modelfleet.serving.replica import VllmReplica

    replica = VllmReplica(args.model.model_dump(mode="json"), args.weights.model_dump(), _cards(args))
    try:
        await _ask(await replica.start_engine(), args.model.model_id)
    finally:
        replica.__del__()  # as Serve does: the engine's processes end before their files are packed


def _cards(args: AppArgs) -> list[dict[str, Any]]:
    return [card.model_dump(mode="json") for card in args.cards]


async def _ask(app: Any, model_id: str) -> None:
    import httpx

    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://warm-up", timeout=600) as client:
        for path, body in REQUESTS:
            answer = await client.post(path, json={"model": model_id, **body})
            _report(f"{path}: {answer.status_code}")


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
