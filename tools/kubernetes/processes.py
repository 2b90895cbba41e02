"""How the tools' processes start: they end with the one that started them, and know no proxy."""

from __future__ import annotations

import ctypes
import os
import signal
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Running(ABC):
    """Runs in a `with` block: what `start` has begun when it fails is stopped too."""

    @abstractmethod
    def start(self) -> None:
        """Start it; returns when it is ready."""

    @abstractmethod
    def stop(self) -> None:
        """End it, also when it has started in part."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()


def end_with_parent() -> None:
    """Run in the child before the program: have it killed when the thread that started it is gone (prctl(2)).

    SIGTERM would not do: an API server never ends if its etcd has gone first.
    """
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def without_proxies() -> dict[str, str]:
    """The environment without proxies: the API server forwards to pods by HTTP and would send that to a proxy."""
    return {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
