"""The LoRA adapters that an application's `user_config` names: their folders on this node, as they come."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from modelfleet.serving.config.errors import ModelfleetError
from modelfleet.serving.config.schema import LoraAdapter
from modelfleet.serving.mirror import status
from modelfleet.serving.mirror.proof import Expected
from modelfleet.serving.mirror.waiting import is_filling
from modelfleet.serving.weights import resolve_adapter

#: What the plan adds to an adapter of a model file.
PLANNED = ("mirror", "signer")
logger = logging.getLogger("ray.serve")


class WantedAdapters:
    """Those of one configuration by name: `folders` on this node, `faults`, and what is `late`."""

    def __init__(
        self, adapters: Iterable[Mapping[str, Any]], limit: int | None = None, manifest_key: str | None = None
    ) -> None:
        """`limit`: bytes that all copies on this node may take; `manifest_key`: what manifests are signed with."""
        self.late: dict[str, Mapping[str, Any]] = {one["name"]: one for one in adapters}
        self.folders: dict[str, Path] = {}
        self.faults: dict[str, str] = {}
        #: What of `late` the log has already.
        self.noted: set[str] = set()
        self._limit, self._key = limit, manifest_key

    def fetch(self) -> None:
        """Fetches what is late, but for what a Job still copies into its mirror; that stays late. Blocks."""
        for name, adapter in list(self.late.items()):
            mirror = adapter.get("mirror")
            own = LoraAdapter.model_validate({key: value for key, value in adapter.items() if key not in PLANNED})
            # Its prefix names source and revision (`infra/planning/applications.py`).
            weights = {"manifest_key": self._key, "signers": {mirror: adapter.get("signer", "")}}
            try:
                expected = Expected.of(weights, mirror) if mirror is not None else None
                if mirror is not None and is_filling(mirror, look=partial(status, expected=expected)):
                    continue
                self.folders[name] = resolve_adapter(own, logger.info, mirror, limit=self._limit, expected=expected)
            except ModelfleetError as error:
                self.faults[name] = str(error)
            except OSError as error:  # such as a full disk
                self.faults[name] = f"lora {name}: {error}"
            del self.late[name]

    def refuse(self, faults: Mapping[str, str]) -> None:
        """What the engine does not take is not asked of it again."""
        self.faults |= faults
        for name in faults:
            del self.folders[name]
