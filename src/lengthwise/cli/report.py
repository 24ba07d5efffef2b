"""`lengthwise report`: tables, plots and report.html again from a run's saved records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lengthwise.cli.options import refuse_given


def report(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --out folder of `bench` or `demo`.")
    ],
    policy: Annotated[
        str | None,
        typer.Option(help="Show this policy alone, in the layout of `vllm bench serve`."),
    ] = None,
    goodput: Annotated[
        list[str] | None,
        typer.Option(
            help="Service-level objectives in ms, such as `ttft:500 tpot:50 e2el:2000`: requests "
            "that meet them all are counted as goodput."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")] = False,
) -> None:
    """Rebuild tables, plots, report.html and results.json from a run's saved records.

    Works on a run that was stopped, too: every round that had ended counts.

    Example: `lengthwise report build/b --goodput "ttft:500 e2el:5000"`
    """
    if json:
        refuse_given(
            context, ["--policy"], "chooses what is shown, and --json gives all: leave one out"
        )
    show_results(folder, policy=policy, goodput=goodput or [], json=json)


def show_results(
    folder: Path,
    *,
    policy: str | None = None,
    goodput: list[str] | tuple[str, ...] = (),
    json: bool = False,
) -> None:
    """Write a run's report and print its table, or its rows as JSON, on stdout.

    Args:
        folder: the run's folder.
        policy: print this policy alone, in vLLM's layout.
        goodput: service-level objectives, see `parse_objectives`.
        json: print the rows of results.json and nothing else on stdout.

    Raises:
        InputError: the folder holds no finished round, cannot be read or written, or an option is
            wrong.
    """
    from rich.console import Console

    from lengthwise.errors import unknown_name
    from lengthwise.measure.metrics import parse_objectives
    from lengthwise.measure.report import REPORT_FILE, RESULTS_FILE, write_report
    from lengthwise.measure.results import read_results
    from lengthwise.measure.twins import read_twins, twins_table
    from lengthwise.measure.wording import comparison_table, serving_results

    objectives = parse_objectives(goodput) or None
    results = read_results(folder)
    policies = {each.info.policy for each in results.rounds}
    if policy is not None and policy not in policies:
        raise unknown_name("policy", policy, policies)
    twins = read_twins(folder, results)
    comparison = write_report(folder, results, objectives, twins)
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    for problem in results.problems:
        progress.print(problem, markup=False)
    if json:
        print((folder / RESULTS_FILE).read_text(encoding="utf-8"), end="")
    elif policy is not None:
        print(serving_results(comparison, policy))
    else:
        screen = Console(highlight=False)
        screen.print(comparison_table(comparison))
        if twins:
            screen.print(twins_table(twins))
    progress.print(f"wrote {folder / REPORT_FILE} and {folder / RESULTS_FILE}", markup=False)
