"""Starts `tools.standin.<name>`, whatever the working directory is and whatever packages it contains.

The executables under `bin/` call this file by path: `-m` would import a `tools` package from the user's folder.
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    runpy.run_module(f"tools.standin.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)
