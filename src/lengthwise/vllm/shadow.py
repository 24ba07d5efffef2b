"""Shadow mode: vLLM's own order, and what the policy would have made of it.

The engine tells what it serves and what its steps take, nothing else of it changes. Now and then a
thread hands the newest requests to a process of its own, `lengthwise.advise.foregone`, which
replays them under both orders. Nothing leaves the machine, and of prompts there are the lengths and
vLLM's hashes of their blocks alone.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

from lengthwise.errors import one_line
from lengthwise.request import PREDICTION
from lengthwise.settings import Settings
from lengthwise.vllm.compat import requests

logger = logging.getLogger("vllm.lengthwise")

REPLAY: Final = "lengthwise.advise.foregone"

_REQUESTS: Final = 2048  # the newest are replayed
_STEPS: Final = 8192  # whose durations tell what a step costs
_BLOCKS: Final = 1 << 20  # of all prompts together; then the oldest requests make room
_FEWEST: Final = 128  # new requests between two estimates
_FEWEST_STEPS: Final = 256  # that costs can be fitted to
_LOOK_S: Final = 1.0
_REST_S: Final = 30.0  # at least, between two estimates
_MOST_DOUBLINGS: Final = 5  # of that, while estimates fail
_PATIENCE_S: Final = 1800.0  # with a replay; the first one may have to compile the simulator
_NICENESS: Final = 10


class Shadow:
    """Keeps the newest requests and steps, and has them replayed.

    Args:
        settings: the policy and all else that would have decided.
        limits: of the engine.
        by_priority: vLLM's own order goes by priority class.

    Attributes:
        key: the settings.
        estimate: what the last replay says (see `foretell_gain`), or `error`; None before it.
    """

    def __init__(self, settings: Settings, limits: Mapping[str, float], by_priority: bool) -> None:
        self.key = settings
        self.estimate: dict[str, Any] | None = None
        self._discipline = settings.discipline_arguments(int(limits["slots"]))
        self._sees_classes = settings.client_priority or settings.policy == "priority"
        self._limits = dict(limits)
        self._by_priority = by_priority
        self._requests: deque[dict[str, Any]] = deque()
        self._steps: deque[dict[str, float]] = deque(maxlen=_STEPS)
        self._blocks = 0
        self._fresh = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="lengthwise-shadow", daemon=True)
        self._thread.start()

    def request(
        self,
        request: Any,
        columns: Any,
        finish_s: float,
    ) -> None:
        """A request has ended.

        Args:
            request: vLLM's.
            columns: its row.
            finish_s: when, s.
        """
        if request.num_output_tokens == 0:  # gone before it was served
            return
        blocks = requests.prompt_blocks(request, int(self._limits["block_size"]))
        line = {
            "arrival_s": float(columns["arrival_s"]),
            "finish_s": finish_s,
            "prompt_tokens": request.num_prompt_tokens,
            "output_tokens": request.num_output_tokens,
            "priority": requests.priority_class(request),
            "tenant": int(columns["tenant"]),
            "predictions": [float(columns[name]) for name in PREDICTION]
            if columns["predicted"]
            else None,
            "blocks": blocks,
        }
        with self._lock:
            self._requests.append(line)
            self._blocks += len(blocks)
            while len(self._requests) > _REQUESTS or self._blocks > _BLOCKS:
                self._blocks -= len(self._requests.popleft()["blocks"])
            self._fresh += 1

    def step(self, duration_s: float | None, work: Mapping[str, int]) -> None:
        """A step has been taken; without a duration the engine idled after it."""
        with self._lock:
            self._steps.append(
                {"duration_s": math.nan if duration_s is None else duration_s, **work}
            )

    def gauges(self) -> dict[str, float]:
        """The estimate for whoever draws it; NaN while there is none."""
        known = self.estimate or {}
        return {
            f"shadow_{name}": float(known.get(name, math.nan))
            for name in ("gain_mean", "gain_ttft", "gain_p99", "replay_error")
        }

    def clear(self) -> None:
        """Forget all that was served."""
        with self._lock:
            self._requests.clear()
            self._steps.clear()
            self._blocks = self._fresh = 0

    def window(self) -> dict[str, Any]:
        """What there is to replay, as `lengthwise.advise.foregone` reads it."""
        with self._lock:
            requests, steps = list(self._requests), list(self._steps)
        return {
            "discipline": self._discipline,
            "engine": self._limits,
            "classes_decide": self._by_priority,
            "policy_sees_classes": self._by_priority or self._sees_classes,
            "requests": _columns(requests),
            "steps": _columns(steps),
        }

    def look(self) -> None:
        """Have what there is replayed; takes seconds, and as long as compiling the first time."""
        taken = self._fresh
        try:
            self.estimate = self._replay(b"".join(in_parts(self.window())))
            with self._lock:
                self._fresh = max(self._fresh - taken, 0)
        except Exception as error:  # an estimate that fails must not end the next one
            self.estimate = {"error": f"{type(error).__name__}: {one_line(error)}"}
            logger.warning("Lengthwise: no shadow estimate: %s", self.estimate["error"])

    def close(self) -> None:
        """End it, and a replay that is under way."""
        self._closed.set()
        child = self._child
        if child is not None and child.poll() is None:
            child.kill()
        self._thread.join(_LOOK_S + 5.0)

    def _run(self) -> None:
        wait_s, failed = _LOOK_S, 0
        while not self._closed.wait(wait_s):
            wait_s = _LOOK_S
            if self._fresh >= _FEWEST and len(self._steps) >= _FEWEST_STEPS:
                self.look()
                failed = failed + 1 if "error" in (self.estimate or {}) else 0
                wait_s = _REST_S * 2 ** min(failed, _MOST_DOUBLINGS)

    def _replay(self, window: bytes) -> dict[str, Any]:
        self._child = subprocess.Popen(
            [sys.executable, "-m", REPLAY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        with self._child as child:
            try:
                os.setpriority(os.PRIO_PROCESS, child.pid, _NICENESS)
                said, complaint = child.communicate(window, timeout=_PATIENCE_S)
            finally:
                child.kill()
        if child.returncode != 0:
            last = complaint.decode(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"the replay ended with {child.returncode}: {' '.join(last)}")
        estimate: dict[str, Any] = json.loads(said)
        return estimate


def in_parts(window: Mapping[str, Any]) -> Iterator[bytes]:
    """A window as JSON, in parts of which none takes long to make.

    As one it is tens of megabytes where prompts are long, and the engine's thread, which is in this
    process, would stand still meanwhile.
    """
    opening = b"{"
    for name, value in window.items():
        yield opening + json.dumps(name).encode() + b":"
        opening = b","
        if isinstance(value, Mapping):
            yield from in_parts(value)
        elif isinstance(value, list) and all(isinstance(row, list) for row in value):
            for place, row in enumerate(value):
                yield (b"," if place else b"[") + json.dumps(row).encode()
            yield b"]" if value else b"[]"
        else:
            yield json.dumps(value).encode()
    yield b"}" if window else b"{}"


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
