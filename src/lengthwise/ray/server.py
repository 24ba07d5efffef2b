"""One replica: Ray's server of an engine, with settings that come with the application.

Serve hands `user_config` to every replica when it starts, and again whenever it is changed, without
starting one anew. It is written into a file of the replica's own, which its scheduler watches like
any settings file: what is refused changes nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.llm._internal.serve.core.server.llm_server import LLMServer

from lengthwise.files import replace_file
from lengthwise.serve.command import SETTINGS_VARIABLE


class Server(LLMServer):  # type: ignore[misc]
    """What `build_app` names where settings are inline."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it, as Ray's own
        self, llm_config: Any, **more: Any
    ) -> None:
        """Start the engine; it finds its settings by the variable that its own process inherits."""
        self._folder = tempfile.TemporaryDirectory(
            prefix="lengthwise-replica-", ignore_cleanup_errors=True
        )
        self._settings = Path(self._folder.name) / "settings.json"
        await self.reconfigure(llm_config.deployment_config["user_config"])
        os.environ[SETTINGS_VARIABLE] = str(self._settings)
        await super().__init__(llm_config, **more)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take up settings; called by Serve."""
        replace_file(self._settings, json.dumps(user_config, indent=2).encode())
