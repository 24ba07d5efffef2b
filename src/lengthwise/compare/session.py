"""One server, one client and one settings file: what rounds are run with.

Policies are switched on the running server: the settings file is written, and waited for until it
is active.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lengthwise.compare.client import Pace, Replay, ReplayJob, ReplayRequest
from lengthwise.compare.client_process import ClientProcess
from lengthwise.compare.engine_log import (
    REQUESTS_FILE,
    ROUNDS_FOLDER,
    SERVER_FOLDER,
    STEPS_FILE,
    EngineLog,
    read_engine_log,
)
from lengthwise.compare.progress import Progress
from lengthwise.compare.specs import Offer
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.files import parse_json
from lengthwise.serve.command import server_command
from lengthwise.serve.listen import free_port
from lengthwise.serve.vllm_server import Server
from lengthwise.settings import Settings, status_path
from lengthwise.simulate.engine import StepCost
from lengthwise.simulate.presets import Preset
from lengthwise.vllm.hidden_states import ProbeWanted

_DRAIN_PATIENCE_S = 15.0


class SettingsSwitch:
    """The settings file of a running server, seen from outside."""

    def __init__(self, path: Path) -> None:
        """Write to `path`, the file that the server's scheduler watches."""
        self.path = path

    def apply(
        self, settings: Settings, check: Callable[[], None], timeout_s: float = 120.0
    ) -> None:
        """Make settings active, and return once they are.

        Args:
            settings: what the scheduler is to do from now on.
            check: called while waiting; raises if the server has ended.
            timeout_s: loading a predictor and compiling a policy are part of the wait.

        Raises:
            LengthwiseError: the scheduler refused the settings (its own line says why) or did not
                take them up in time.
        """
        refused_before = self._refusal()
        digest = settings.write(self.path)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = self.status()
            if status.get("settings_sha256") == digest and status.get("state") == "active":
                return
            refused = self._refusal()
            # The words of an earlier refusal stay until something new is active.
            if refused is not None and refused != refused_before:
                raise LengthwiseError(f"the scheduler refused the settings: {refused}")
            check()
            time.sleep(0.02)
        raise LengthwiseError(
            f"the scheduler did not take up {self.path} within {timeout_s:.0f} s: "
            f"{self._refusal() or 'see the log of the server'}"
        )

    def _refusal(self) -> object:
        """Why the scheduler keeps its last good settings; None where it does not."""
        status = self.status()
        return status.get("error") if status.get("state") == "refused" else None

    def status(self) -> dict[str, object]:
        """The scheduler's status file; empty while there is none."""
        try:
            value = parse_json(status_path(self.path).read_bytes())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def counters(self) -> dict[str, int]:
        """The scheduler's counters since the server started."""
        counters = self.status().get("counters")
        return dict(counters) if isinstance(counters, dict) else {}

    def growth(
        self, before: Mapping[str, int], finished: int, timeout_s: float = 2.0
    ) -> dict[str, int]:
        """By how much each counter grew, once `finished` more requests are counted.

        Args:
            before: the counters at the start.
            finished: requests that are known to have finished since; the status file may lag.
            timeout_s: after so long the counters are taken as they are.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            grown = {name: count - before.get(name, 0) for name, count in self.counters().items()}
            if grown.get("finished", 0) >= finished or time.monotonic() > deadline:
                return grown
            time.sleep(0.02)


@dataclass(frozen=True)
class Observed:
    """A round as both sides saw it.

    Attributes:
        replay: the client's view.
        engine: the scheduler's view.
        counters: by how much each of the scheduler's counters grew.
        known_capacity: tokens (prompt and answer) of these requests that the engine can do a
            second, where its costs are known and need not be found in its steps.
    """

    replay: Replay
    engine: EngineLog
    counters: dict[str, int]
    known_capacity: float | None = None

    @property
    def capacity(self) -> float | None:
        """Tokens of this round's requests that the engine can do a second; see `EngineLog`."""
        return self.engine.capacity() if self.known_capacity is None else self.known_capacity


class Session:
    """Runs rounds on a server that is up."""

    def __init__(
        self,
        server: Server,
        client: ClientProcess,
        switch: SettingsSwitch,
        folder: Path,
        *,
        emulated: bool = False,
    ) -> None:
        """Use `folder` for what the scheduler records of each round.

        Args:
            server: it is up.
            client: sends the requests.
            switch: the server's settings.
            folder: for the records.
            emulated: no model decides how long the answers are, so the server is told.
        """
        self._server = server
        self._client = client
        self._switch = switch
        self._folder = folder
        self._emulated = emulated
        self.url = server.url
        self.server_arguments = server.command.arguments
        model = json.loads(self._call("/v1/models"))["data"][0]
        self.model: str = model["id"]
        self.max_model_len: int = model["max_model_len"]

    def run_round(
        self,
        name: str,
        settings: Settings,
        requests: Sequence[ReplayRequest],
        offer: Offer,
        *,
        cost: StepCost | None = None,
        max_tokens: int = 1024,
        progress: Callable[[int, int], None] = lambda answered, failed: None,
    ) -> Observed:
        """Switch to a policy, replay the requests, and wait until all are answered.

        The server is idle before and after, and its prefix cache is empty at the start.

        Args:
            name: the name of the round's folder of records.
            settings: the policy and all that belongs to it.
            requests: what to send.
            offer: when each is sent.
            cost: what steps take by the clock of the offer, which then runs at the engine's
                speed; None: it is the wall's.
            max_tokens: the limit for requests whose answer's length is open.
            progress: called with the numbers of answered and failed requests.

        Raises:
            LengthwiseError: the server ended, refused the settings or keeps its prefix cache.
        """
        records = self._folder / name
        records.mkdir(parents=True, exist_ok=True)
        self._switch.apply(settings.model_copy(update={"record": str(records)}), self._server.check)
        self._reset_prefix_cache()
        before = self._switch.counters()
        job = ReplayJob(
            url=self._server.url,
            model=self.model,
            requests=requests,
            scheduled_s=offer.scheduled_s,
            pace=None if cost is None else Pace(records / STEPS_FILE, cost),
            turns=offer.turns,
            clients=offer.clients,
            max_tokens=max_tokens,
            tell_truth=self._emulated
            or (settings.predictor or "").partition(":")[0] in ("oracle", "noisy-oracle"),
        )
        replay = self._client.replay(job, progress, self._server.check)
        self._server.check()
        finished = sum(answer.error is None for answer in replay.answers)
        engine = read_engine_log(records, finished)
        return Observed(replay, engine, self._switch.growth(before, finished))

    def _reset_prefix_cache(self) -> None:
        """Empty the prefix cache: a round must not find the previous one's prompts in it."""
        deadline = time.monotonic() + _DRAIN_PATIENCE_S
        # Requests that their client gave up may hold blocks for a moment more.
        while not json.loads(self._call("/reset_prefix_cache", method="POST"))["success"]:
            if time.monotonic() > deadline:
                raise LengthwiseError(
                    "the server does not reset its prefix cache: is somebody else using it?"
                )
            time.sleep(0.2)

    def _call(self, path: str, method: str = "GET") -> bytes:
        try:
            return self._server.call(path, method=method)
        except OSError as error:
            self._server.check()
            raise LengthwiseError(f"the server failed at {path}: {error}") from error


@dataclass(frozen=True)
class Starting:
    """A server that is coming up, which takes half a minute, with all that its session needs."""

    server: Server
    client: ClientProcess
    switch: SettingsSwitch
    folder: Path
    emulated: bool

    def wait(self, progress: Progress) -> Session:
        """The session, once the server answers.

        Raises:
            LengthwiseError: the server did not come up.
        """
        self.server.wait_ready(tick=lambda waited_s: progress.advance(int(waited_s), "s"))
        return Session(self.server, self.client, self.switch, self.folder, emulated=self.emulated)


@contextmanager
def open_session(
    model: str,
    out: Path,
    *,
    flags: Sequence[str],
    port: int | None,
    progress: Progress,
    probe: ProbeWanted | None = None,
    emulate: Preset | None = None,
) -> Iterator[Session]:
    """Start a server and a client for the rounds of one run, and stop both in the end.

    Args:
        model: the model to serve, or `reference`.
        out: the run's folder.
        flags: vLLM's own flags.
        port: the server's TCP port; None takes a free one.
        progress: told about the start, which takes half a minute.
        probe: from `probe_of`, the probe that the worker runs in every round; None for none.
        emulate: the GPU and the model whose pace the server keeps; `model` is then `reference`.

    Raises:
        InputError: the server cannot be started as asked.
        LengthwiseError: the server did not come up.
    """
    with start_session(
        model, out, flags=flags, port=port, probe=probe, emulate=emulate
    ) as starting:
        progress.stage(f"starting vLLM with {model}")
        yield starting.wait(progress)


@contextmanager
def start_session(
    model: str,
    out: Path,
    *,
    flags: Sequence[str],
    port: int | None,
    probe: ProbeWanted | None = None,
    emulate: Preset | None = None,
) -> Iterator[Starting]:
    """`open_session` for who has something else to do until the server is up.

    Raises:
        InputError: the server cannot be started as asked.
    """
    folder = out / SERVER_FOLDER
    settings = folder / "settings.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror}: choose another folder with --out"
        ) from error
    command = server_command(
        model,
        settings.absolute(),
        host="127.0.0.1",
        port=free_port() if port is None else port,
        flags=[*flags, "--disable-uvicorn-access-log"],
        development_routes=True,
        probe=probe,
        emulate=emulate,
    )
    Settings().write(settings)
    with Server(command, folder / "server.log") as server, ClientProcess() as client:
        server.step_back()
        yield Starting(
            server,
            client,
            SettingsSwitch(settings),
            (folder / ROUNDS_FOLDER).absolute(),
            emulated=emulate is not None,
        )


def _clear(folder: Path) -> None:
    """Remove an earlier run's records, to which the scheduler would append, and nothing else."""
    for name in (STEPS_FILE, REQUESTS_FILE):
        for path in folder.glob(f"{ROUNDS_FOLDER}/*/{name}"):
            path.unlink()
