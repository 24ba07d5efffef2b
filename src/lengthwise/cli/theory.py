"""`lengthwise theory`: mean response times of a single server, by formula and by simulation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthwise.cli.options import JsonOption, refuse_given

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from lengthwise.theory import JobLaw, SizeLaw


def theory(
    context: typer.Context,
    policy: Annotated[
        str, typer.Option(help="`fcfs`, `sjf`, `srpt` (SPRPT where predictions err) or `trail`.")
    ] = "trail",
    rate: Annotated[
        float, typer.Option(help="Arrivals per mean service time, so also the load; below 1.")
    ] = 0.7,
    c: Annotated[
        float,
        typer.Option(
            help="For trail: share of its prediction after which a job is never preempted. "
            "0 is the limit from above."
        ),
    ] = 0.8,
    predictions: Annotated[
        str,
        typer.Option(
            help="`perfect`; `exponential` with the size as its mean; or a second column of the "
            "table given as --size."
        ),
    ] = "perfect",
    size: Annotated[
        str,
        typer.Option(
            help="Law of the sizes: `exponential`, `deterministic`, `lognormal:SIGMA`, "
            "`weibull:SHAPE` or `TABLE#COLUMN` of a .parquet, .jsonl or .csv file."
        ),
    ] = "exponential",
    jobs: Annotated[int, typer.Option(min=1000, help="Jobs to simulate.")] = 5_000_000,
    seed: Annotated[int, typer.Option(min=0, help="For the simulation.")] = 0,
    simulation: Annotated[
        bool,
        typer.Option("--simulation/--no-simulation", help="Simulate beside the formula."),
    ] = True,
    json: JsonOption = False,
) -> None:
    """Mean response time of a single server that jobs leave one at a time, with free preemption.

    The formula of M/G/1, and beside it an independent simulation with a 99 % interval, which also
    gives preemptions and memory. Times are in mean sizes: 1 is a job's mean time alone.

    Example: `lengthwise theory --policy trail --rate 0.7 --c 0.8 --predictions exponential`
    """
    from rich.console import Console

    from lengthwise.cli.output import ConsoleProgress, print_json
    from lengthwise.theory.response_times import (
        REPLICATIONS,
        make_queue,
        mean_response_time,
        simulate,
    )

    if not simulation:
        refuse_given(context, ("--jobs", "--seed"), "is for the simulation: leave it out")
    if policy != "trail":
        refuse_given(context, ["--c"], "is for trail: leave it out")
    law = _job_law(size, predictions)
    queue = make_queue(law, rate, policy, c)
    mean = mean_response_time(law, rate, policy, c)
    measured = None
    if simulation:
        with ConsoleProgress() as progress:
            progress.stage(f"simulating {jobs:,} jobs", total=REPLICATIONS)
            measured = simulate(
                law, rate, policy, c, count=jobs, seed=seed, progress=progress.advance
            )
    result = {
        "policy": policy,
        "rate": rate,
        "load": round(queue.load, 9),
        "c": None if policy == "fcfs" else queue.c,
        "predictions": predictions,
        "size": size,
        "mean_response_time": mean,
        "simulated": measured and measured.mean_response_time,
        "interval": measured and [measured.low, measured.high],
        "ratio": measured and mean / measured.mean_response_time,
        "preemptions_per_job": measured and measured.preemptions_per_job,
        "mean_age_in_memory": measured and measured.mean_age_in_memory,
        "jobs": measured and measured.jobs,
        "seed": measured and seed,
    }
    if json:
        print_json(result)
    else:
        Console(highlight=False).print(_as_table(result))


def _job_law(size: str, predictions: str) -> JobLaw:
    """The law that --size and --predictions name, with mean size 1."""
    from lengthwise.errors import unknown_name
    from lengthwise.theory import laws

    path, in_table, column = size.rpartition("#")
    if in_table:
        sizes = _column(Path(path), column)
        law = laws.size_samples(sizes)
        unit = float(sizes.mean())
        law = laws.size_samples(sizes / unit)
    else:
        law = _size_law(size)
    if predictions == "perfect":
        return laws.perfectly_predicted(law)
    if predictions == "exponential":
        return laws.noisily_predicted(law)
    if in_table:
        return laws.job_samples(sizes / unit, _column(Path(path), predictions) / unit)
    raise unknown_name("kind of predictions", predictions, ("perfect", "exponential"))


def _size_law(text: str) -> SizeLaw:
    """A law of sizes by its name, with mean 1."""
    from lengthwise.errors import InputError, unknown_name
    from lengthwise.theory import laws

    plain = {"exponential": laws.exponential, "deterministic": laws.deterministic}
    shaped = {"lognormal": laws.lognormal, "weibull": laws.weibull}
    if text in plain:
        return plain[text]()
    name, _, parameter = text.partition(":")
    if name not in shaped:
        raise unknown_name("law of sizes", text, (*plain, *shaped, "TABLE#COLUMN"))
    try:
        return shaped[name](float(parameter))
    except ValueError:
        raise InputError(f"--size {text}: give {name} its parameter, such as {name}:0.8") from None


def _column(path: Path, name: str) -> NDArray[np.float64]:
    """The numbers of a table's column, shape (rows,)."""
    import numpy as np

    from lengthwise.errors import InputError, one_line
    from lengthwise.workload.records import read_table

    table = read_table(path)
    if table.unreadable:
        row, reason = table.unreadable[0]
        raise InputError(f"{path}: row {row}: {reason}: mend or remove it")
    numbers = np.empty(len(table.numbers))
    for index, (row, cell) in enumerate(zip(table.numbers, table.column(name), strict=True)):
        try:
            numbers[index] = float(cell)
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f"{path}: row {row}: {name} is not a number: {one_line(cell, repr)}"
            ) from None
    return numbers


def _as_table(result: dict[str, Any]) -> Table:
    """The figures with what they mean."""
    from rich.table import Table

    table = Table(show_header=False)
    rule = "" if result["c"] is None else f", c = {result['c']:g}"
    table.add_row("Policy", f"{result['policy']}{rule}")
    table.add_row("Sizes, predictions", f"{result['size']}, {result['predictions']}")
    table.add_row("Load", f"{result['load']:g}")
    table.add_row("Mean response time, formula", f"{result['mean_response_time']:.4f}")
    if result["simulated"] is not None:
        low, high = result["interval"]
        table.add_row(
            "Mean response time, simulated (99 % interval)",
            f"{result['simulated']:.4f} ({low:.4f} to {high:.4f})",
        )
        table.add_row("Formula / simulated", f"{result['ratio']:.4f}")
        table.add_row("Preemptions per job", f"{result['preemptions_per_job']:.3f}")
        table.add_row("Mean summed age in memory", f"{result['mean_age_in_memory']:.3f}")
        table.add_row("Jobs simulated, seed", f"{result['jobs']:,}, {result['seed']}")
    return table
