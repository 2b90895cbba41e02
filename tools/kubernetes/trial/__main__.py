"""`python -m tools.kubernetes.trial up|down --stack cluster`: what `make up STACK=cluster` runs.

up      kubectl's cluster if it is on this machine, or one that starts here; object store, weights, deploy, first answer
down    `modelfleet down`, take the object store and the labels away, end the cluster that `up` started
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from modelfleet.cli.endpoint import curl_example
from modelfleet.infra.kubernetes.api import ApiError, Unreachable
from modelfleet.serving.config.errors import ModelfleetError, SetupError
from tools.kubernetes.api import WritingApi
from tools.kubernetes.trial.own_cluster import OwnCluster
from tools.kubernetes.trial.trial import Trial, local_weights
from tools.paths import ROOT
from tools.progress import say

MODELFLEET = Path(sys.prefix) / "bin" / "modelfleet"
#: Clusters there are not production's. kind and k3d listen there; minikube may not.
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANYWHERE = "TRIAL_ANYWHERE"
QUESTION = "What is the capital of France?"


def main() -> int:
    """Run one command; returns the exit code, 2 if the environment lacks something."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tools.kubernetes.trial", description=__doc__, formatter_class=plain
    )
    parser.add_argument("command", choices=["up", "down"])
    parser.add_argument("--stack", default="cluster")
    arguments = parser.parse_args()
    own = OwnCluster(ROOT / ".modelfleet" / "cluster")
    try:
        return _up(arguments.stack, own) if arguments.command == "up" else _down(arguments.stack, own)
    except ModelfleetError as error:
        say(f"{error}")
        return error.exit_code
    except (Unreachable, ApiError) as error:
        say(f"the cluster: {error}")
        return SetupError.exit_code


def _up(stack: str, own: OwnCluster) -> int:
    with _trial(stack, own.kubeconfig or _kubeconfig() or own.start()) as trial, trial.object_store() as storage:
        trial.prepare(storage, local_weights())
        if code := _modelfleet("up", trial, storage):
            return code
        with trial.gateway() as gateway:
            say(f"{trial.plan.models[0].model_id}: {ask(gateway.url, trial)!r}")
        namespace = trial.plan.namespace
        say("To ask it from here:")
        print(f"export KUBECONFIG={trial.kubeconfig}")
        print(f"kubectl --namespace {namespace} port-forward service/gateway 8080:80")
        print(curl_example("http://127.0.0.1:8080", trial.plan.models[0], "text", with_key=False))
    return 0


def _down(stack: str, own: OwnCluster) -> int:
    kubeconfig = own.kubeconfig or _kubeconfig()
    if kubeconfig is None:
        say("no cluster answers, so nothing of the stack is left")
        return 0
    with _trial(stack, kubeconfig) as trial:
        with trial.object_store() as storage:
            code = _modelfleet("down", trial, storage)
        if not code:
            trial.forget()
    own.stop()
    return code


def ask(url: str, trial: Trial) -> str:
    """The first model's answer through the gateway."""
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": trial.plan.models[0].model_id, "temperature": 0, "max_tokens": 24, "messages": messages}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def _trial(stack: str, kubeconfig: Path) -> closing[Trial]:
    return closing(Trial(stack, kubeconfig, WritingApi.from_kubeconfig(kubeconfig)))


def _modelfleet(command: str, trial: Trial, storage: dict[str, str]) -> int:
    environment = {**os.environ, **storage, "KUBECONFIG": str(trial.kubeconfig)}
    return subprocess.run(
        [MODELFLEET, command, "--stack", trial.stack], cwd=ROOT, env=environment, check=False
    ).returncode


def _kubeconfig() -> Path | None:
    """kubectl's own, if its cluster answers. Raises `SetupError` where that may be anybody's production."""
    path = Path(os.environ.get("KUBECONFIG") or "~/.kube/config").expanduser()
    if not path.is_file():
        return None
    try:
        with closing(WritingApi.from_kubeconfig(path)) as api:
            say(f"a cluster answers at {api.server}")
            if urlsplit(api.server).hostname not in LOOPBACK and not os.environ.get(ANYWHERE):
                raise SetupError(f"the cluster at {api.server} is not on this machine; {ANYWHERE}=1 tries it there")
    except (Unreachable, ApiError) as error:
        say(f"{path} is not used: {error}")
        return None
    return path


if __name__ == "__main__":
    sys.exit(main())
