"""`modelfleet:local:Ray`: one Ray on this machine's loopback address, with the plan's custom resources.

The state holds one process, `ray start --block`, which ends the rest of Ray when a core process dies.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

from modelfleet.infra.local.ports import LOOPBACK, free_port, require_free
from modelfleet.infra.local.processes import ProcessId, end_all, left_behind, members, spawn
from modelfleet.infra.local.provider.folders import run_folder
from modelfleet.infra.local.provider.last_start import of_last_start, write_last_start
from modelfleet.infra.local.provider.progress import Progress
from modelfleet.infra.local.provider.replica_log import tail
from modelfleet.infra.local.provider.serve_api import NotOurs, ServeApi, Unreachable
from modelfleet.infra.local.runtime import QUIET_RAY, queues_file, short_folder, straight_to_loopback, usage_folder
from modelfleet.infra.local.token import environment as token_environment
from modelfleet.infra.local.token import make_token, token_file
from modelfleet.infra.names import mark
from modelfleet.infra.provider import Call, Made, Props, Refused, ResourceDef
from modelfleet.serving import own_user
from modelfleet.serving.config.serve_options import RAY_ENVIRONMENT
from modelfleet.serving.scaling import QUEUES_VARIABLE
from modelfleet.serving.usage import FOLDER_VARIABLE

RAY_HEAD = Path(__file__).parents[1] / "ray_head.py"
PORTS = ("gcsPort", "servePort", "dashboardPort", "rayMetricsPort")
ATTEMPTS = 3
#: Long, because it only matters for a Ray that hangs; one that ends is noticed at once.
START_TIMEOUT_S = 600.0
#: Time for processes to end before they are killed. Serve gave replicas theirs when it deleted their application.
END_GRACE_S = 4.0
ANSWER_TIMEOUT_S = 15.0
POLL_TIMEOUT_S = 4.0
#: The dashboard is slow on a busy machine, and restarting Ray would stop every model, so a live Ray gets this long.
PATIENCE_S = 60.0
OBJECT_STORE_BYTES = 256 * 1024**2
#: An upgrade restarts no Ray, so this is only said.
OPEN = (
    "Ray was started by an earlier version and asks nobody for a token: every user of this machine can run code as "
    "you. `modelfleet down` and `modelfleet up` start one that asks"
)
#: Ray turns 127.0.0.1 into the machine's outer address and listens on all addresses, unless it must not form clusters
#: (`ray._private.ray_constants.ENABLE_RAY_CLUSTER`; the default on macOS).
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def create(call: Call[Props], inputs: Props) -> Made:
    """Ends what a killed run left of Ray, starts Ray and waits until its dashboard answers."""
    mine = mark(inputs["folder"], "ray")
    if left := end_all(lambda: [*left_behind(mine), *of_last_start(inputs["folder"])], END_GRACE_S):
        call.note(f"ended {left} processes of this stack's earlier Ray")
    require_free({name: inputs[name] for name in PORTS})
    Path(inputs["folder"]).mkdir(parents=True, exist_ok=True)
    process = _start(call, inputs, mine)
    outputs = {"pid": process.pid, "started": process.started, "dashboardUrl": dashboard_url(inputs)}
    return Made(f"ray-{process.pid}-{int(process.started)}", {**outputs, "logs": str(logs_folder(inputs["folder"]))})


def _start(call: Call[Props], inputs: Props, mine: str) -> ProcessId:
    """Starts Ray; a start that fails on a busy machine works the next time, so it gets several attempts."""
    run_folder(inputs["folder"], "ray")
    temp, log = temp_folder(inputs["folder"]), Path(inputs["folder"]) / "ray.log"
    temp.mkdir(exist_ok=True)
    make_token(inputs["folder"])
    progress = Progress(call.step)
    for attempt in range(1, ATTEMPTS + 1):
        log.unlink(missing_ok=True)
        process = spawn(
            _command(inputs, temp),
            mark=mine,
            log=log,
            cwd=temp,
            env=ray_environment({**inputs["environment"], **_of_folder(inputs["folder"]), **own_user.ENVIRONMENT}),
        )
        write_last_start(inputs["folder"], process)
        try:
            _wait(inputs, process, log, progress)
            return process
        except (NotStarted, Refused) as failed:
            _end(process)
            if attempt == ATTEMPTS or isinstance(failed, Refused):
                shutil.rmtree(temp.parent, ignore_errors=True)
                raise Refused(str(failed)) from failed
            call.note(f"{failed}; trying again")
    raise AssertionError("not reached: the last attempt returns or raises")


class NotStarted(Exception):
    """Ray ended or hung while starting; the text says why."""


def _wait(inputs: Props, process: ProcessId, log: Path, progress: Progress) -> None:
    api, until = serve_api(inputs), time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            api.details(timeout_s=POLL_TIMEOUT_S)
            return
        except NotOurs as error:
            raise Refused(str(error)) from error  # ours cannot have the port any more
        except Unreachable:
            said = f"{tail(log) or 'no output'} (full output: {log})"
            if process.find() is None:
                raise NotStarted(f"Ray ended while starting: {said}") from None
            if time.monotonic() > until:
                raise NotStarted(f"Ray was not ready after {START_TIMEOUT_S:.0f} s: {said}") from None
            progress.say(f"starting Ray on {LOOPBACK}:{inputs['gcsPort']}")
            time.sleep(0.3)


def _end(leader: ProcessId) -> None:
    end_all(lambda: members(leader), END_GRACE_S)


def read(call: Call[Props], id: str, state: Props) -> Props | None:
    """Returns None if Ray's process has ended or its dashboard no longer answers; the next run starts it again."""
    if ProcessId(state["pid"], state["started"]).find() is None:
        call.note("Ray is no longer running; it will be started again")
        return None
    progress = Progress(call.step)
    while True:
        try:
            serve_api(state).details(ANSWER_TIMEOUT_S)
            if not token_file(state["folder"]).exists():
                call.note(OPEN)
            return state
        except Unreachable as error:
            if progress.seconds > PATIENCE_S or isinstance(error, NotOurs):
                call.note(f"Ray runs, but {error}; it will be started again")
                return None
            progress.say("waiting for Ray's dashboard")
            time.sleep(1)


def delete(call: Call[Props], id: str, state: Props) -> None:
    """Ends the processes of this Ray, no others, and removes its temporary folder."""
    call.step("ending Ray")
    _end(ProcessId(state["pid"], state["started"]))
    shutil.rmtree(temp_folder(state["folder"]).parent, ignore_errors=True)


def dashboard_url(inputs: Props) -> str:
    """Base URL of Ray's dashboard."""
    return f"http://{LOOPBACK}:{inputs['dashboardPort']}"


def serve_api(inputs: Props) -> ServeApi:
    """Serve on this Ray."""
    return ServeApi(dashboard_url(inputs), inputs["servePort"], Path(inputs["folder"]))


def temp_folder(folder: str) -> Path:
    """Ray's folder: short, the same for every run of a stack. Ray opens it to all users, so its parent is private."""
    return short_folder(folder, "ray") / "r"


def logs_folder(folder: str) -> Path:
    """Where this Ray and its replicas write their logs."""
    return temp_folder(folder) / "session_latest" / "logs"


def _command(inputs: Props, temp: Path) -> list[str]:
    options = {
        "node-ip-address": LOOPBACK,
        "port": inputs["gcsPort"],
        "dashboard-host": LOOPBACK,
        "dashboard-port": inputs["dashboardPort"],
        "metrics-export-port": inputs["rayMetricsPort"],
        # Ray's default is a fixed port, so a second Ray on this machine would not start.
        "dashboard-agent-listen-port": free_port(),
        "num-cpus": inputs["cpus"],
        "num-gpus": inputs["gpus"],
        "resources": json.dumps(inputs["resources"], sort_keys=True),
        "object-store-memory": OBJECT_STORE_BYTES,
        "temp-dir": temp,
        "include-dashboard": "true",
        "include-log-monitor": "false",  # it copies replicas' logs to drivers, and there is no driver
    }
    arguments = [f"--{key}={value}" for key, value in options.items()]
    return [
        sys.executable,
        "-P",  # keeps the script's folder off the path of what it starts
        str(RAY_HEAD),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        *arguments,
    ]


def _of_folder(folder: str) -> dict[str, str]:
    """What Serve and replicas find in the stack's folders. Not an input, or the upgrade that adds one restarts Ray."""
    folders = {FOLDER_VARIABLE: str(usage_folder(Path(folder))), QUEUES_VARIABLE: str(queues_file(folder))}
    return {**token_environment(folder), **folders}


def ray_environment(extra: dict[str, str]) -> dict[str, str]:
    """The user's environment, less what would change Python, Pulumi or Ray for Ray's workers, plus the stack's own."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PULUMI_", "PYTHON", "RAY_", "GRPC_", "AWS_"))}
    return {
        **own,
        **straight_to_loopback(own),
        **LOOPBACK_ONLY,
        **RAY_ENVIRONMENT,  # not among the inputs: what an upgrade adds there would restart Ray
        **QUIET_RAY,
        **extra,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


RAY = ResourceDef[Props](
    token="modelfleet:local:Ray",  # noqa: S106 - Pulumi's word for a type
    inputs=frozenset({"folder", *PORTS, "cpus", "gpus", "resources", "environment"}),
    required=frozenset({"folder", *PORTS, "cpus", "resources", "environment"}),
    defaults={"gpus": 0},
    outputs=frozenset({"pid", "started", "dashboardUrl", "logs"}),
    create=create,
    read=read,
    delete=delete,
    delete_before_replace=True,
)
