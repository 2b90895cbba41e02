"""The local target's one node: this machine, as Ray counts it. It depends on the stack file only, so that a
changed model never restarts the local Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelfleet.infra.planning.cards import Gpus
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.host_memory import host_bytes
from modelfleet.infra.planning.mirrors import stored_bytes
from modelfleet.infra.planning.plan import NodeShape
from modelfleet.infra.stack import Pool, StackConfig
from modelfleet.serving.config.accelerators import CPU
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import replica_bounds

Facts = Mapping[str, ModelFacts | None]
#: CPUs that Ray counts when the stack file gives no number. They only steer placement and reserve no core.
DEFAULT_CPUS = 32
#: Pure functions cannot know this machine's memory, so the plan does not compare it with the models.
UNKNOWN_MEMORY_MIB = 0


#: Soft limits of open files below this fail under load; it is Linux's own hard limit where nobody raised it. Ray, the
#: gateway and vLLM each keep one for every connection.
LEAST_OPEN_FILES = 4096
#: Logs, sockets, the gateway's files and Ray's session, beside the weights.
LEAST_FREE_BYTES = 1024**3
#: What `observability.metrics: own` runs here, with the names that each may have on PATH: Debian calls the second one
#: prometheus-alertmanager, as its package.
MONITOR_PROGRAMS: Final[Mapping[str, Sequence[str]]] = {
    "prometheus": ("prometheus",),
    "alertmanager": ("alertmanager", "prometheus-alertmanager"),
}
#: The Alertmanager that takes a webhook's URL from a file, and lives on: 0.26 is the first that takes one, but it and
#: 0.27 crash when the receiver answers with an error (prometheus/alertmanager #3223, #3800).
URL_FILE_SINCE: Final = (0, 28)


@dataclass(frozen=True)
class Room:
    """A folder that a local stack writes to, or the nearest one above it that is there. Bytes."""

    what: str
    folder: str
    free_bytes: int
    writable: bool = True


@dataclass(frozen=True)
class Machine:
    """What `infra/reading` found on this machine, for the local target. `gpus` is None where nobody looked.

    `open_files` is the hard limit (None: there is none), up to which the plugin raises its own; `rooms` are the folders
    that a stack writes to, `weights_room` is the Hub's cache, and `weights_here` its bytes by Hub id. Where
    `executable_memory` is False, a process may not make code while it runs; `selinux` is enforcing. `programs` are the
    paths of those of `MONITOR_PROGRAMS` that are on PATH; None where nobody looked, because the stack runs none.
    `alertmanager` is the version of the one that has to keep a secret; None where there is none, or none to keep.
    """

    memory_bytes: int
    gpus: Gpus | None = None
    open_files: int | None = None
    rooms: tuple[Room, ...] = ()
    weights_room: Room | None = None
    weights_here: tuple[tuple[str, int], ...] = ()
    executable_memory: bool = True
    selinux: bool = False
    programs: Mapping[str, str] | None = None
    alertmanager: tuple[int, int] | None = None


def machine_missing(machine: Machine | None, models: Sequence[ModelConfig], facts: Facts) -> list[str]:
    """What keeps this machine from serving, one sentence each with its fix."""
    if machine is None:
        return []
    found = []
    if machine.open_files is not None and machine.open_files < LEAST_OPEN_FILES:
        found.append(
            f"this shell may have {machine.open_files} files open, and serving takes {LEAST_OPEN_FILES}; raise it: "
            f"ulimit -Hn {LEAST_OPEN_FILES} as root, or `nofile` in /etc/security/limits.conf"
        )
    if not machine.executable_memory:
        fix = "`setsebool deny_execmem off` as root" if machine.selinux else "MemoryDenyWriteExecute=no in its unit"
        by = "SELinux" if machine.selinux else "this shell's limits"
        found.append(
            f"code that is made at run time is forbidden by {by}, and torch computes with such; allow it: {fix}"
        )
    for room in machine.rooms:
        if not room.writable:
            found.append(f"{room.folder} cannot be written, and {room.what} goes there; {_elsewhere(room)}")
        elif room.free_bytes < LEAST_FREE_BYTES:
            free = f"{room.free_bytes / 1e6:,.0f} MB"
            found.append(f"{room.folder} has {free} free, and {room.what} goes there; free some, or {_elsewhere(room)}")
    found += _programs_missing(machine)
    return [*found, *_weights_missing(machine, models, facts), *_memory_missing(machine, models, facts)]


def _programs_missing(machine: Machine) -> list[str]:
    if machine.programs is None:
        return []
    absent = [name for name in MONITOR_PROGRAMS if name not in machine.programs]
    found = [programs_absent(absent)] if absent else []
    if machine.alertmanager and machine.alertmanager < URL_FILE_SINCE:
        has, needs = (".".join(map(str, one)) for one in (machine.alertmanager, URL_FILE_SINCE))
        found.append(
            f"alertmanager on PATH is {has}, and with the secret modelfleet:alertWebhook it takes {needs}: older ones "
            "read no URL from a file, or crash when the receiver answers with an error; put a newer one there "
            "(https://prometheus.io/download), or take the key out"
        )
    return found


def programs_absent(names: Sequence[str]) -> str:
    """That programs of `MONITOR_PROGRAMS` are not there, and the way to them."""
    packages = " ".join(MONITOR_PROGRAMS[name][-1] for name in names)
    are, them = ("is", "it") if len(names) == 1 else ("are", "them")
    return (
        f"{' and '.join(names)} {are} not on PATH, and modelfleet:observability.metrics is own; install {them} "
        f"(apt install {packages}), or take the key out"
    )


def _elsewhere(room: Room) -> str:
    variable = {"what is downloaded": "set XDG_CACHE_HOME and HF_HOME", "Ray's session": "set TMPDIR"}.get(room.what)
    return f"{variable} to another folder" if variable else "run it in another folder"


def _weights_missing(machine: Machine, models: Sequence[ModelConfig], facts: Facts) -> list[str]:
    """Models on cards load from the Hub's cache on this disk; what is there already takes no more room."""
    if (room := machine.weights_room) is None:
        return []
    here, more = dict(machine.weights_here), dict[str, int]()
    for model in models:
        source, size = model.engine_config.weights_id, stored_bytes(facts.get(model.model_id))
        if model.accelerator != CPU and size and not source.startswith("/"):
            more[source] = max(0, size - here.get(source, 0))
    wanted = sum(more.values())
    names = ", ".join(name for name, size in more.items() if size)
    if wanted + LEAST_FREE_BYTES <= room.free_bytes:
        return []
    if not names:
        return []
    has = f"{room.folder} has {room.free_bytes / 1e9:,.1f} GB free"
    fix = "free some, or set HF_HOME to a folder on a larger disk"
    return [f"the weights of {names} take {wanted / 1e9:,.1f} GB more, and {has}; {fix}"]


def _memory_missing(machine: Machine, models: Sequence[ModelConfig], facts: Facts) -> list[str]:
    """The memory of the machine, not what is free of it now: that changes by the minute."""
    needed = sum(replica_bounds(one)[0] * host_bytes(one, facts.get(one.model_id)) for one in models)
    if needed <= machine.memory_bytes:
        return []
    gib = 1024**3
    has = f"this machine has {machine.memory_bytes / gib:,.1f} GiB; serve fewer of them here"
    return [f"the models take {needed / gib:,.1f} GiB of memory at their fewest replicas, and {has}"]


def memory_short(machine: Machine | None, model: ModelConfig, models: Iterable[ModelConfig], facts: Facts) -> bool:
    """Whether the machine's memory does not hold one replica of `model` more beside everybody's fewest.

    False where the machine, or what a replica takes, is not known.
    """
    more = host_bytes(model, facts.get(model.model_id)) if machine else 0
    if machine is None or not more:
        return False
    fewest = sum(max(replica_bounds(one)[0], 1) * host_bytes(one, facts.get(one.model_id)) for one in models)
    return fewest + more > machine.memory_bytes


def local_node(pool: Pool, config: StackConfig, gpus: int | None = None) -> NodeShape:
    """This machine as the pool's node: all pools are on it. `gpus` are its cards that serve."""
    cpus = config.local.cpus or DEFAULT_CPUS
    return NodeShape(
        cpu_millis=cpus * 1000,
        memory_mib=UNKNOWN_MEMORY_MIB,
        gpus=0 if pool.accelerator == CPU else gpus or config.local.gpus or 1,
        shm_mib=0,
    )
