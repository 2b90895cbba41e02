"""How the tools' processes start: they end with the one that started them, and know no proxy."""

from __future__ import annotations

import ctypes
import os
import signal


def end_with_parent() -> None:
    """Run in the child before the program: have it killed when the thread that started it is gone (prctl(2)).

    SIGTERM would not do: an API server never ends if its etcd has gone first.
    """
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def without_proxies() -> dict[str, str]:
    """The environment without proxies: the API server forwards to pods by HTTP and would send that to a proxy."""
    return {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
