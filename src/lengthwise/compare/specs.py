"""Policies and loads as users write them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lengthwise.compare.load import Burst, Capacity, Clients, Load, Rate, Trace, Turns
from lengthwise.errors import InputError
from lengthwise.policy import get_policy
from lengthwise.settings import Settings, parse_spec
from lengthwise.workload.columns import open_columns
from lengthwise.workload.load_trace import load_trace


def parse_policies(
    specs: Iterable[str], predictor: str | None, *, pausing: bool = False
) -> dict[str, Settings]:
    """Settings by label, from policy specs separated by commas.

    A comparison is of bare policies: overtaking is bounded, and poor predictions are not followed,
    where a spec says so (in `serve` that is the default).

    Args:
        specs: such as `fcfs,srpt:max_overtakes=50;blend=0.9`; the spec is the label.
        predictor: what policies predict with that do not name a predictor of their own.
        pausing: whoever makes way keeps its KV, where a spec does not say otherwise.

    Raises:
        InputError: a spec is wrong, given twice, or needs a predictor and has none.
    """
    labels = [label.strip() for text in specs for label in text.split(",") if label.strip()]
    if not labels:
        raise InputError("no policy was given: for example --policy fcfs,srpt")
    settings: dict[str, Settings] = {}
    for label in labels:
        if label in settings:
            raise InputError(f"policy {label!r} was given twice: give each once, use --repeats")
        policy = get_policy(label.partition(":")[0])
        if policy.predicts and not (predictor or policy.predictor or "predictor=" in label):
            raise InputError(
                f"policy {label!r} needs a predictor: add --predictor DIR (`lengthwise train` "
                "makes one), or --predictor noisy-oracle:0.5 to try it without"
            )
        bare = Settings(
            predictor=predictor,
            max_overtakes=None,
            max_lead=None,
            tau_floor=None,
            pausing=pausing and "auto",
        )
        settings[label] = parse_spec(label, bare)
    return settings


def parse_loads(
    loads: Iterable[str],
    rates: Iterable[float],
    clients: Iterable[int],
    *,
    burst: bool,
    trace: Trace | None,
) -> list[Load]:
    """The loads of a comparison, from the options that name them; a burst without any.

    Args:
        loads: multiples of capacity, or `burst`; each text may hold several, with commas.
        rates: requests per second.
        clients: clients of closed loops.
        burst: all requests at once.
        trace: recorded arrivals.

    Raises:
        InputError: a load is not a number above 0.
    """
    chosen: list[Load] = []
    for name in (name.strip() for text in loads for name in text.split(",") if name.strip()):
        if name == "burst":
            chosen.append(Burst())
            continue
        try:
            chosen.append(Capacity(float(name)))
        except ValueError:
            raise InputError(
                f"--load {name!r} is neither a number (1.05: just above capacity) nor 'burst'"
            ) from None
    chosen += [Rate(rate) for rate in rates]
    chosen += [Clients(count) for count in clients]
    if trace is not None:
        chosen.append(trace)
    if burst:
        chosen.append(Burst())
    return list(dict.fromkeys(chosen)) or [Burst()]


def read_trace(path: Path, speed: float) -> Trace:
    """Recorded arrivals: of a trace in any layout, or a column `arrival_s` of a parquet file.

    Raises:
        InputError: no such file, or nothing in it says when requests arrived.
    """
    if path.suffix == ".parquet":
        columns = open_columns(path)
        if "arrival_s" in columns.names:
            times = columns.read("arrival_s").to_pylist()
            if None in times:
                raise InputError(f"{path}, row {times.index(None) + 1}: arrival_s is missing")
            return Trace(tuple(map(float, times)), speed)
    # Whatever lengths it has: requests have their own.
    trace = load_trace(path, answer_tokens=1)
    trace.refuse_rejected()
    turns = None
    if trace.after is not None and trace.delay_s is not None:
        turns = Turns(tuple(trace.after.tolist()), tuple(trace.delay_s.tolist()))
    return Trace(tuple(trace.arrival_s.tolist()), speed, turns)
