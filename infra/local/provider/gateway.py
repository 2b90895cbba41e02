"""`modelfleet:local:Gateway`: the two HAProxy processes in front, changed without dropping a stream."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from modelfleet.infra.gateway import GatewayFiles, Runtime
from modelfleet.infra.local import haproxy
from modelfleet.infra.local.ports import require_free
from modelfleet.infra.local.processes import ProcessId
from modelfleet.infra.local.provider.folders import run_folder
from modelfleet.infra.local.runtime import gateway_runtime, queues_file
from modelfleet.infra.provider import Call, Made, Props, Refused, ResourceDef
from modelfleet.serving.config.errors import SetupError

#: Open streams get this long when the gateway is deleted.
STOP_S = 2.0


def create(call: Call[Props], inputs: Props) -> Made:
    """Starts the gateway; takes over the ports of one that a killed run left behind."""
    runtime = _runtime(inputs)
    left = _left_behind(runtime)
    if left.gateway is None:
        require_free({"gatewayPort": inputs["port"], "metricsPort": inputs["metricsPort"]})
    return Made(f"gateway-{inputs['port']}", _start(runtime, inputs, left))


def update(call: Call[Props], id: str, state: Props, inputs: Props) -> Props:
    """Swaps new keys in the running process; any other change starts processes that take over the old ones' ports."""
    runtime = _runtime(inputs)
    only_keys = all(state.get(key) == inputs.get(key) for key in ("texts", "port", "metricsPort"))
    if only_keys and inputs.get("keys") and state.get("keys"):
        try:
            haproxy.set_keys(runtime, inputs["keys"])
        except (SetupError, ValueError) as error:
            raise Refused(str(error)) from error
        return {key: state[key] for key in OUTPUTS}
    changed = {
        setting: inputs[key]
        for setting, key in (("gatewayPort", "port"), ("metricsPort", "metricsPort"))
        if inputs[key] != state[key]
    }
    require_free(changed)
    return _start(runtime, inputs, haproxy.Processes(state["pid"], state["bodiesPid"]))


def read(call: Call[Props], id: str, state: Props) -> Props | None:
    """Returns None if one of the processes has ended; the next run starts them again."""
    for pid, started in (("pid", "started"), ("bodiesPid", "bodiesStarted")):
        if ProcessId(state[pid], state[started]).find() is None:
            call.note("the gateway is no longer running; it will be started again")
            return None
    return state


def delete(call: Call[Props], id: str, state: Props) -> None:
    """Ends both processes and removes their sockets and files."""
    running = {
        pid
        for pid, started in ((state["pid"], state["started"]), (state["bodiesPid"], state["bodiesStarted"]))
        if ProcessId(pid, started).find()
    }
    if running:
        haproxy.stop(haproxy.Processes(max(running), min(running)), timeout_s=STOP_S)
    runtime = _runtime(state)
    shutil.rmtree(runtime.run_folder, ignore_errors=True)
    shutil.rmtree(runtime.folder, ignore_errors=True)
    queues_file(state["folder"]).unlink(missing_ok=True)


def _start(runtime: Runtime, inputs: Props, replaces: haproxy.Processes | haproxy.Left) -> Props:
    log = Path(inputs["folder"]) / "gateway.log"
    try:
        run_folder(inputs["folder"], "gw")
        haproxy.write(GatewayFiles(inputs["texts"]), runtime, inputs.get("keys"))
        queues_file(inputs["folder"]).write_text(runtime.metrics_bind, encoding="utf-8")
        made = haproxy.start(runtime, haproxy.find_binary(), log, replaces=replaces)
    except (SetupError, ValueError) as error:
        raise Refused(f"the gateway cannot start: {error}") from error
    first, second = ProcessId.of(made.gateway), ProcessId.of(made.bodies)
    return {"pid": first.pid, "started": first.started, "bodiesPid": second.pid, "bodiesStarted": second.started}


def _left_behind(runtime: Runtime) -> haproxy.Left:
    """The processes that answer on this stack's own sockets but are in no state."""
    return haproxy.Left(_answering(runtime.admin_socket), _answering(runtime.bodies_admin_socket))


def _answering(path: str) -> int | None:
    """The process that answers on a socket, if one does."""
    with suppress(SetupError, StopIteration, ValueError):
        answer = haproxy.ask(path, "show info")
        return int(next(line for line in answer.splitlines() if line.startswith("Pid:")).partition(":")[2])
    return None


def _runtime(inputs: Props) -> Runtime:
    return gateway_runtime(inputs["folder"], inputs["port"], inputs["metricsPort"])


OUTPUTS = ("pid", "started", "bodiesPid", "bodiesStarted")

GATEWAY = ResourceDef[Props](
    token="modelfleet:local:Gateway",  # noqa: S106 - Pulumi's word for a type
    inputs=frozenset({"folder", "port", "metricsPort", "texts", "keys"}),
    required=frozenset({"folder", "port", "metricsPort", "texts"}),
    outputs=frozenset(OUTPUTS),
    force_new=frozenset({"folder"}),
    create=create,
    read=read,
    update=update,
    delete=delete,
    delete_before_replace=True,
)
