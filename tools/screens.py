"""Draws docs/screen-*.svg: what commands print on a terminal.

python -m tools.screens          three commands
python -m tools.screens gpu      the first screen on six pretended machines
python -m tools.screens top      what the local stack does, which must be up
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

ROOT: Final = Path(__file__).parents[1]
COLUMNS: Final = 112
SCREENS: Final = {
    "add": ["add", "Qwen/Qwen3-14B", "--stack", "dev", "--offline", "--dry-run"],
    "models": ["models", "--search", "qwen3.5"],
    "models-show": [
        "models",
        "show",
        "openai/gpt-oss-120b",
        "--accelerator",
        "H100",
        "--concurrency",
        "16",
        "--offline",
    ],
}
TOP: Final = ["top", "--stack", "local", "--once"]
#: Machines of the stand-in for nvidia-smi; `none` is one that it does not know, and answers as without a driver.
MACHINES: Final = ("none", "t4", "l4", "desktop", "two-h100", "old-driver")
STANDIN: Final = ROOT / "tools" / "standin" / "bin" / "nvidia"
#: The command as where vLLM's CUDA build is installed: here it is the one for CPUs, which the first line would say.
PRETENDED: Final = (
    "import modelfleet.infra.reading.cards as cards; cards._installed = lambda package: False; "
    "from modelfleet.cli.main import main; main()"
)


def main(arguments: Sequence[str]) -> None:
    """Run each command and draw it."""
    if arguments == ["gpu"]:
        for machine in MACHINES:
            own = {"STANDIN_CARDS": machine, "PATH": f"{STANDIN}{os.pathsep}{os.environ['PATH']}"}
            text = printed(["-c", PRETENDED, "plan", "--stack", "gpu"], own)
            shown = "\n".join(line for line in text.splitlines() if "a stand-in answers" not in line)
            _write(f"gpu-{machine}", shown, f"modelfleet plan --stack gpu (pretended machine: {machine})")
        return
    for name, words in {"top": TOP}.items() if arguments == ["top"] else SCREENS.items():
        text = re.sub(r"^.*looking at .*\n", "", printed(["-m", "modelfleet.cli.main", *words], {}))
        _write(name, text, f"modelfleet {' '.join(words)}")


def _write(name: str, text: str, title: str) -> None:
    path = ROOT / "docs" / f"screen-{name}.svg"
    path.write_text(drawn(text, title), encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")


def printed(arguments: list[str], more: Mapping[str, str]) -> str:
    """What Python writes to a terminal of `COLUMNS` columns, with `arguments`, and `more` in its environment.

    Raises `CalledProcessError` when it fails.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    command = [sys.executable, *arguments]
    environment = {**os.environ, "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1", **more}
    process = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = bytearray()
    try:
        while part := os.read(ours, 65536):
            seen += part
    except OSError:  # Linux ends a terminal that nobody holds any more with EIO
        pass
    finally:
        os.close(ours)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command, seen.decode())
    return seen.decode().replace("\r\n", "\n")


def drawn(text: str, title: str) -> str:
    """The terminal as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text))
    # Without the web fonts: a page shows it with its own.
    return re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title=title), flags=re.DOTALL)


if __name__ == "__main__":
    main(sys.argv[1:])
