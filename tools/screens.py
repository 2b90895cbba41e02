"""Draws docs/screen-*.svg: what three commands print on a terminal.

python -m tools.screens
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


def main() -> None:
    """Run each command and draw it."""
    for name, arguments in SCREENS.items():
        path = ROOT / "docs" / f"screen-{name}.svg"
        path.write_text(drawn(printed(arguments), f"modelfleet {' '.join(arguments)}"), encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


def printed(arguments: list[str]) -> str:
    """What the command writes to a terminal of `COLUMNS` columns. Raises `CalledProcessError` when it fails."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "modelfleet.cli.main", *arguments]
    environment = {**os.environ, "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
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
    main()
