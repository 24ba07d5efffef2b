"""Memory that Lengthwise adds to the engine core, with no request queued and with 100,000.

    python bench/queue_memory.py
    python bench/queue_memory.py --json

Stock vLLM and ours run in processes of their own, one after the other: the same scheduler class
with a stand-in model runner, a full batch and the queue. What counts is the resident set at the
end, our imports and compiled code included, and its peak. The row without a queue tells what is
there from the start from what the requests add, and the row `numba` what of that is there with
stock vLLM and one empty compiled function. Of the resident set,
what is anonymous is the process's own; the rest is pages of files (LLVM's library), which several
engines share and the system may drop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.scheduler_overhead import TimedEngine

BATCH = 16
STEPS = 50


def memory_mib(field: str) -> float:
    """VmRSS (resident now), VmHWM (its peak) or RssAnon of this process, in MiB. Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"this system does not report {field}: run the benchmark on Linux")


def compile_nothing() -> None:
    """What any compiled function brings with it: numba, LLVM and LLVM's target machine."""
    import numba

    numba.njit(lambda value: value)(1)


def fill_and_measure(policy: str, queued: int) -> dict[str, float]:
    """In a fresh process: queue the requests, run some steps, and read the resident set."""
    import vllm.v1.engine.core  # noqa: F401 - what the engine core has loaded in any case

    if policy in ("stock", "numba"):
        if policy == "numba":
            compile_nothing()
        engine = TimedEngine(None, "Scheduler", "fcfs", BATCH, queued, None)
    else:
        from lengthwise.vllm import Scheduler

        settings: dict[str, object] = {"policy": policy, "predictor": "oracle", "tau_floor": None}
        engine = TimedEngine(Scheduler, "Scheduler", "fcfs", BATCH, queued, settings)
    for _ in range(STEPS):
        engine.step()
    return {
        "resident_mib": memory_mib("VmRSS"),
        "peak_mib": memory_mib("VmHWM"),
        "anonymous_mib": memory_mib("RssAnon"),
    }


def measure(policy: str, queued: int) -> dict[str, float]:
    """`fill_and_measure` in a child process."""
    command = [sys.executable, __file__, "--child", policy, "--queued", str(queued)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def compare(policy: str, queued: int, repeats: int) -> dict[str, str | int | float]:
    """One row: medians over fresh processes, stock and ours in turn."""
    stock, ours = [], []
    for _ in range(repeats):
        stock.append(measure("stock", queued))
        ours.append(measure(policy, queued))

    def middle(results: list[dict[str, float]], field: str) -> float:
        return statistics.median(result[field] for result in results)

    resident = middle(stock, "resident_mib"), middle(ours, "resident_mib")
    peak = middle(stock, "peak_mib"), middle(ours, "peak_mib")
    anonymous = middle(stock, "anonymous_mib"), middle(ours, "anonymous_mib")
    return {
        "policy": policy,
        "queued": queued,
        "stock_mib": round(resident[0], 1),
        "ours_mib": round(resident[1], 1),
        "added_mib": round(resident[1] - resident[0], 1),
        "added_peak_mib": round(peak[1] - peak[0], 1),
        "added_anonymous_mib": round(anonymous[1] - anonymous[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--policy", default="srpt", help="default: %(default)s")
    parser.add_argument("--queued", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(fill_and_measure(arguments.child, arguments.queued)))
        return

    cases = (("numba", 0), (arguments.policy, 0), (arguments.policy, arguments.queued))
    rows = [compare(policy, queued, arguments.repeats) for policy, queued in cases]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(
            f"{row['queued']:>7,} queued, {row['policy']}: stock {row['stock_mib']} MiB,"
            f" ours {row['ours_mib']} MiB, added {row['added_mib']} MiB"
            f" (peak {row['added_peak_mib']} MiB, anonymous {row['added_anonymous_mib']} MiB)"
        )


if __name__ == "__main__":
    main()
