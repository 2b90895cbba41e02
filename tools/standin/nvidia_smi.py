"""A stand-in for NVIDIA's command: it answers as on the machine that STANDIN_CARDS names, and says so on stderr.

It knows the two questions that modelfleet asks. The machines are from public outputs of the real command; total memory
is as NVML says it (H100: measured 2026-11-27 with driver 580).
"""

import os
import sys
from pathlib import Path

CARD = {
    "t4": "Tesla T4, 15360, {used}, 7.5",
    "l4": "NVIDIA L4, 23034, {used}, 8.9",
    "4090": "NVIDIA GeForce RTX 4090, 24564, {used}, 8.9",
    "h100": "NVIDIA H100 80GB HBM3, 81559, {used}, 9.0",
    "v100": "Tesla V100-SXM2-16GB, 16384, {used}, 7.0",
    "gb10": "NVIDIA GB10, [N/A], [N/A], 12.1",
}
MACHINES = {
    "t4": ("580.65.06", [("t4", 2)]),
    "l4": ("580.65.06", [("l4", 0)]),
    "desktop": ("580.95.05", [("4090", 1873)]),
    "crowded": ("580.95.05", [("4090", 19000)]),
    "two-h100": ("580.65.06", [("h100", 0), ("h100", 0)]),
    "mixed": ("580.65.06", [("t4", 0), ("h100", 0), ("h100", 0)]),
    "old-driver": ("535.183.01", [("l4", 0)]),
    "old-card": ("580.65.06", [("v100", 0)]),
    "spark": ("580.95.05", [("gb10", 0)]),
}
#: Processes of others: card's index, pid, name, MiB.
USERS = {"desktop": [(0, 1, "/usr/lib/xorg/Xorg", 873)], "crowded": [(0, 1, "/usr/bin/python3", 18000)]}


def main() -> int:
    """Answer one question."""
    machine = os.environ.get("STANDIN_CARDS", "")
    sys.stderr.write(f"nvidia-smi: a stand-in answers as the machine {machine!r}; there is no such card here\n")
    if machine not in MACHINES:
        sys.stdout.write(
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
            "NVIDIA driver is installed and running.\n"
        )
        return 9
    driver, cards = MACHINES[machine]
    what, fields = sys.argv[1].removeprefix("--query-").split("=", 1)
    if what == "gpu":
        rows = [_row(index, driver, kind, used) for index, (kind, used) in enumerate(cards)]
    else:
        told = os.environ.get("STANDIN_TOLD")
        own = [] if told == "none" else [*_own(), *_engines()]
        rows = [
            {"gpu_uuid": _uuid(card), "pid": str(pid), "process_name": name, "used_memory": str(mib)}
            for card, pid, name, mib in [*USERS.get(machine, []), *own]
        ]
        if told == "[N/A]":
            rows = [{**row, "used_memory": told} for row in rows]
            rows.append({"gpu_uuid": _uuid(0), "pid": told, "process_name": told, "used_memory": told})
    for row in rows:
        sys.stdout.write(", ".join(row[field] for field in fields.split(",")) + "\n")
    return 0


def _row(index: int, driver: str, kind: str, used: int) -> "dict[str, str]":
    used += sum(mib for card, *_, mib in [*_own(), *_engines()] if card == index)
    name, total, used_text, capability = CARD[kind].format(used=used).split(", ")
    return {
        "index": str(index),
        "uuid": _uuid(index),
        "name": name,
        "memory.total": total,
        "memory.used": used_text,
        "compute_cap": capability,
        "driver_version": driver,
    }


def _own() -> "list[tuple[int, int, str, int]]":
    """A process that STANDIN_USER names as `PID:MIB`, on the first card; STANDIN_TOLD says what is told of it.

    As in a container `none`, as on WSL `[N/A]`; by default its number.
    """
    pid, _, mib = os.environ.get("STANDIN_USER", "").partition(":")
    return [(0, int(pid), "ray::RayWorkerProc", int(mib))] if pid else []


def _engines() -> "list[tuple[int, int, str, int]]":
    """vLLM's processes whose output is a file below the Ray folder STANDIN_ENGINES, on the first card.

    They need no card, so their own memory stands for that of one. A process that ends leaves the list with it.
    """
    folder = os.environ.get("STANDIN_ENGINES")
    found: list[tuple[int, int, str, int]] = []
    if not folder:
        return found
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            if name.startswith("VLLM::") and str((process / "fd" / "1").readlink()).startswith(folder):
                pages = int((process / "statm").read_text().split()[1])
                found.append((0, int(process.name), name, pages * os.sysconf("SC_PAGESIZE") >> 20))
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found


def _uuid(index: int) -> str:
    return f"GPU-{index:08d}-0000-4000-8000-000000000000"


if __name__ == "__main__":
    sys.exit(main())
