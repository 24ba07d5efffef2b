"""The clients that ServeGen publishes, as the requests that they would send.

A client is two files: `chunk-N-trace.csv`, without a header, with a line for each window of some
minutes (its beginning in s, requests a second, their coefficient of variation, Gamma or Weibull,
shape and scale of the gaps between requests; no pattern where the rate is 0); and
`chunk-N-dataset.json`, with histograms of the lengths by window, each as a text such as
"{224: 0.0003, 225: 0.0008}" that Python would read (servegen/clientpool.py). As there
(servegen/construct.py), gaps are drawn and stretched to fill their window, and who arrives at its
end is left out: but for rounding a client sends one request less in a window than its rate says,
rounded up, and nothing where it says one.
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.files import parse_json
from lengthwise.workload.layouts import Layout
from lengthwise.workload.records import UnusableError
from lengthwise.workload.trace_rows import LONGEST

#: of ServeGen's clients
LAYOUT: Final = Layout(
    name="servegen client",
    arrival="time",
    prompt="input_tokens",
    output="output_tokens",
    source="[ServeGen](https://github.com/alibaba/ServeGen), its published clients, from which "
    "requests are drawn",
)

_TRACE: Final = re.compile(r"chunk-(\d+)-trace\.csv")
_PATTERNS: Final = ("Gamma", "Weibull")
_CELLS: Final = 6
_WINDOW_S: Final = 600.0  # of the last window, whose end no other tells
_PROMPT_PARTS: Final = ("input_tokens", "text_tokens")


class Window(NamedTuple):
    """A stretch of a client's time."""

    start_s: float
    rate: float  #: requests a second
    pattern: str  #: "Gamma" or "Weibull", "" where nothing is sent
    shape: float
    scale: float


class Drawn(NamedTuple):
    """Requests of one window of some clients, in the order of arrival."""

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]


@dataclass(frozen=True)
class Client:
    """What one client does."""

    path: Path
    windows: list[Window]
    lengths: dict[float, dict[str, NDArray[np.float64]]]  #: by window, then shares by length

    @property
    def requests(self) -> float:
        """How many its rates say; each window has about one less, see above."""
        return sum(window.rate * end for window, end in self.spans())

    def spans(self) -> Iterator[tuple[Window, float]]:
        """The windows with their lengths in s."""
        for number, window in enumerate(self.windows):
            last = number + 1 == len(self.windows)
            usual = self.windows[-1].start_s - self.windows[-2].start_s if number else _WINDOW_S
            yield window, usual if last else self.windows[number + 1].start_s - window.start_s


def is_client(path: Path) -> bool:
    """Whether a file is a client's, or a folder has some."""
    if path.is_dir():
        return any(_TRACE.fullmatch(each.name) for each in path.iterdir())
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            cells = next(csv.reader(lines), [])
        return len(cells) == _CELLS and cells[3] in (*_PATTERNS, "") and float(cells[0]) >= 0
    except (OSError, UnicodeDecodeError, ValueError, csv.Error):
        return False


def open_clients(path: Path) -> list[Client]:
    """A client, or all that a folder has, by number.

    Raises:
        InputError: a file is missing or damaged.
    """
    if not path.is_dir():
        return [_client(path)]
    found = [
        (int(match[1]), each) for each in path.iterdir() if (match := _TRACE.fullmatch(each.name))
    ]
    return [_client(each) for _, each in sorted(found)]


def draw(clients: list[Client], seed: int) -> Iterator[Drawn]:
    """The requests of all clients together, window by window.

    Args:
        clients: whose windows begin at the same times.
        seed: same seed, same requests.

    Raises:
        InputError: a client's lengths are not known.
    """
    for client in clients:
        if not client.lengths:
            raise UnusableError(
                f"{client.path}: {len(client.windows)} windows with about {client.requests:,.0f} "
                "requests, whose lengths are in another file: name it chunk-N-trace.csv and put "
                "chunk-N-dataset.json beside it, as ServeGen publishes them",
                LAYOUT.name,
                LAYOUT.source,
            )
    random = np.random.default_rng(seed)
    starts = sorted({window.start_s for client in clients for window in client.windows})
    by_start = [
        {window.start_s: (window, span) for window, span in client.spans()} for client in clients
    ]
    for start in starts:
        parts = [
            _draw_window(client, *windows[start], random)
            for client, windows in zip(clients, by_start, strict=True)
            if start in windows
        ]
        arrival, prompt, output = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(arrival, kind="stable")
        yield Drawn(arrival[order], prompt[order], output[order])


def _draw_window(
    client: Client, window: Window, span_s: float, random: np.random.Generator
) -> Drawn:
    count = int(np.ceil(window.rate * span_s)) if window.pattern else 0
    told = [start_s for start_s in client.lengths if start_s <= window.start_s]
    lengths = client.lengths[max(told, default=min(client.lengths))]
    if window.pattern == "Gamma":
        gaps = random.gamma(window.shape, window.scale, count)
    else:
        gaps = window.scale * random.weibull(window.shape or 1.0, count)
    total = gaps.sum()
    times = np.cumsum(gaps) * (span_s / total) if total > 0 else np.zeros(count)
    times = times[times < span_s]
    prompt = sum(
        (_drawn(lengths[name], times.size, random) for name in _PROMPT_PARTS if name in lengths),
        np.zeros(times.size, np.int64),
    )
    output = _drawn(lengths["output_tokens"], times.size, random)
    return Drawn(window.start_s + times, np.maximum(prompt, 1), np.maximum(output, 1))


def _drawn(
    shares: NDArray[np.float64], count: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Lengths, by the share that each has."""
    places = np.searchsorted(np.cumsum(shares), random.random(count) * shares.sum())
    lengths: NDArray[np.int64] = np.minimum(places, shares.size - 1).astype(np.int64)
    return lengths


def _client(path: Path) -> Client:
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            windows = [
                _window(path, number, cells) for number, cells in enumerate(csv.reader(lines), 1)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not the windows of a client of ServeGen: {error}") from None
    starts = [window.start_s for window in windows]
    if not starts or starts != sorted(set(starts)):
        raise InputError(f"{path}: not windows of a client of ServeGen, each after the one before")
    beside = path.with_name(path.name.replace("-trace.csv", "-dataset.json"))
    known = beside != path and beside.is_file()
    return Client(path, windows, _histograms(beside) if known else {})


def _window(path: Path, number: int, cells: list[str]) -> Window:
    try:
        start, rate, _, pattern, shape, scale = cells
        window = Window(float(start), float(rate), pattern, float(shape or 0), float(scale or 0))
    except ValueError:
        raise InputError(f"{path}, row {number}: not a window of a client of ServeGen") from None
    told = (window.start_s, window.rate, *((window.shape, window.scale) if pattern else ()))
    if not all(0 <= value < np.inf for value in told):
        raise InputError(f"{path}, row {number}: a number that is negative or not finite")
    if pattern not in (*_PATTERNS, ""):
        known = ", ".join(_PATTERNS)
        raise InputError(f"{path}, row {number}: unknown pattern {pattern!r}: known are {known}")
    return window


def _histograms(path: Path) -> dict[float, dict[str, NDArray[np.float64]]]:
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
        by_window = {
            float(start): {
                name: _shares(ast.literal_eval(cell))
                for name, cell in fields.items()
                if name in (*_PROMPT_PARTS, "output_tokens")
            }
            for start, fields in document.items()
        }
    except (OSError, ValueError, TypeError, SyntaxError, AttributeError) as error:
        raise InputError(f"{path}: not the lengths of a client of ServeGen: {error}") from None
    return {
        start: found
        for start, found in sorted(by_window.items())
        if found.get("output_tokens", np.zeros(0)).size and len(found) > 1
    }


def _shares(histogram: dict[int, float]) -> NDArray[np.float64]:
    """The share of each length from 0 on.

    Raises:
        ValueError: something in it is no length, or no share.
    """
    for length, share in histogram.items():
        if not (isinstance(length, int) and 0 <= length <= LONGEST and 0 <= share < np.inf):
            raise ValueError(f"{length!r}: {share!r}")
    shares = np.zeros(max(histogram, default=-1) + 1)
    for length, share in histogram.items():
        shares[length] = share
    return shares
