"""`python -m tools.bench.soak` (`make soak`): checks that memory stays flat under a long mixed load.

A real vLLM with the tiny random model runs behind Ray Serve and the gateway, as with `make up`. The load is what good
and bad clients do: plain and streamed chats, prompts that share nothing, clients that leave mid-stream, bodies of
megabytes with `model` last, refused requests, and more requests at a time than the replica takes. Each sample is the
resident memory of each kind of process. The run fails if a kind's memory in the last quarter exceeds that of the second
quarter by more than the allowance (caches fill in the first quarter), or if a good request fails.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tools.bench import models, servers
from tools.bench.__main__ import VARIANTS

#: Allowed growth of a kind's memory between the second and the last quarter: this share, but at least these MiB.
GROWTH = 0.03
GROWTH_MIB = 24.0
CLIENTS = 12
REFUSED = (400, 404, 413)
#: The model works on fewer requests than there are clients, so some wait and a few are refused.
ONGOING, QUEUED = 6, 4


@dataclass
class Load:
    """Clients that send requests for `model` to `base` until `stop`; counts answers by kind of request and outcome."""

    base: str
    model: str
    stop: threading.Event = field(default_factory=threading.Event)
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def run(self) -> list[threading.Thread]:
        """Starts the clients."""
        threads = [threading.Thread(target=self._client, args=(number,), daemon=True) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        return threads

    def _client(self, seed: int) -> None:
        chance = random.Random(seed)
        kinds: dict[str, tuple[int, Callable[[requests.Session, random.Random], str]]] = {
            "plain": (30, self._plain),
            "streamed": (30, self._streamed),
            "left": (15, self._left),
            "large": (5, self._large),
            "bad": (20, self._bad),
        }
        session = requests.Session()
        while not self.stop.is_set():
            kind = chance.choices(list(kinds), [weight for weight, _ in kinds.values()])[0]
            try:
                outcome = kinds[kind][1](session, chance)
            except requests.RequestException as problem:
                outcome = f"fault: {type(problem).__name__}"
                self.faults.append(f"{kind}: {problem}"[:300])
            self.outcomes[f"{kind}: {outcome}"] += 1

    def _plain(self, session: requests.Session, chance: random.Random) -> str:
        return self._outcome(session.post(self._url(), json=self._body(chance), timeout=120))

    def _streamed(self, session: requests.Session, chance: random.Random) -> str:
        with session.post(self._url(), json=self._body(chance, stream=True), stream=True, timeout=120) as answer:
            if answer.status_code != 200:
                return self._outcome(answer)
            last = [line for line in answer.iter_lines() if line][-1]
            return "200" if last == b"data: [DONE]" else self._fault("a stream ended without [DONE]")

    def _left(self, session: requests.Session, chance: random.Random) -> str:
        body = self._body(chance, stream=True) | {"max_tokens": 400}
        with session.post(self._url(), json=body, stream=True, timeout=120) as answer:
            if answer.status_code != 200:
                return self._outcome(answer)
            next(answer.iter_lines())
        return "left"

    def _large(self, session: requests.Session, chance: random.Random) -> str:
        """Send a prompt that is too long for the model: vLLM reads all of it and refuses."""
        body = self._body(chance)
        body["messages"][0]["content"] = "word " * chance.randint(200_000, 600_000)
        return self._outcome(session.post(self._url(), json=body, timeout=120), refused=True)

    def _bad(self, session: requests.Session, chance: random.Random) -> str:
        good = self._body(chance)
        body = chance.choice(
            [
                b"{",
                b"[]",
                json.dumps(good | {"n": 1000}).encode(),
                json.dumps(good | {"model": f"no/{chance.random()}"}).encode(),
            ]
        )
        headers = {"content-type": "application/json"}
        return self._outcome(session.post(self._url(), data=body, headers=headers, timeout=120), refused=True)

    def _url(self) -> str:
        return f"{self.base}/v1/chat/completions"

    def _body(self, chance: random.Random, *, stream: bool = False) -> dict[str, Any]:
        text = " ".join(str(chance.randrange(10**6)) for _ in range(chance.randint(3, 150)))
        return {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": chance.randint(1, 64),
            "ignore_eos": True,
            "stream": stream,
            "model": self.model,
        }

    def _outcome(self, answer: requests.Response, *, refused: bool = False) -> str:
        code = answer.status_code
        if code == 503 and "retry-after" in answer.headers:
            time.sleep(0.2)
            return "503"
        return (
            str(code) if (code in REFUSED if refused else code == 200) else self._fault(f"{code} {answer.text[:200]}")
        )

    def _fault(self, what: str) -> str:
        self.faults.append(what)
        return f"fault: {what[:40]}"


Sample = dict[str, float]


def grown(samples: Sequence[Sample]) -> list[str]:
    """A sentence for each kind of process whose median in the last quarter exceeds that of the second quarter."""
    quarter = max(1, len(samples) // 4)
    found = []
    for kind in sorted({kind for sample in samples for kind in sample}):
        series = [sample.get(kind, 0.0) for sample in samples]
        before, after = statistics.median(series[quarter : 2 * quarter]), statistics.median(series[-quarter:])
        if after - before > max(GROWTH_MIB, GROWTH * before):
            found.append(f"{kind} grew from {before:.0f} to {after:.0f} MiB")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Load and watch; return 1 if memory grew or a request failed, 2 if the server did not start."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.soak", description="Checks that memory stays flat under load."
    )
    parser.add_argument("--minutes", type=float, default=20, help="length of the run; default: 20")
    parser.add_argument("--every", type=float, default=15, help="seconds between samples")
    parser.add_argument("--port", type=int, default=8750, help="first of 60 ports")
    parser.add_argument("--gcs-port", type=int, default=6700, help="first of 5 ports of Ray")
    options = parser.parse_args(arguments)
    model = models.model_file("tiny")
    model["deployment_config"] |= {"max_ongoing_requests": ONGOING, "max_queued_requests": QUEUED}
    ports = servers.Ports(options.port, options.gcs_port)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        try:
            with servers.serve(VARIANTS["fleet"], model, ports, Path(folder)) as running:
                return _soak(running, model["engine_config"]["model_id"], ports, options)
        except RuntimeError as problem:
            print(f"the server did not start: {problem}", file=sys.stderr)
            return 2


def _soak(running: servers.Running, model_id: str, ports: servers.Ports, options: argparse.Namespace) -> int:
    load = Load(f"http://127.0.0.1:{ports.gateway}", model_id)
    samples: list[Sample] = [running.tree.resident_mib()]
    kinds = list(samples[0])
    print("resident MiB\n" + "".join(f"{name:>15}" for name in ["minute", *kinds, "requests"]))
    clients = load.run()
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < 60 * options.minutes:
        time.sleep(min(options.every, 60 * options.minutes - passed))
        sample = running.tree.resident_mib()
        samples.append(sample)
        cells = [f"{(time.monotonic() - begun) / 60:.1f}", *(f"{sample.get(kind, 0):.0f}" for kind in kinds)]
        print("".join(f"{cell:>15}" for cell in [*cells, str(load.outcomes.total())]), flush=True)
    load.stop.set()
    for client in clients:
        client.join(130)
    print("\n" + "\n".join(f"{count:>8} {outcome}" for outcome, count in sorted(load.outcomes.items())))
    wrong = [*grown(samples), *load.faults[:10]]
    print("\n" + ("\n".join(wrong) if wrong else f"flat: no kind of process grew in {options.minutes:g} minutes"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
