"""The longest step while a policy is exchanged for another one, under load.

    python bench/policy_swap.py                 a table
    python bench/policy_swap.py --json          a list of rows
    python bench/policy_swap.py --cold          with nothing compiled before

vLLM's real scheduler runs with a full batch, a queue of constant length and a stand-in model
runner, as in `scheduler_overhead.py`; between two steps it waits as for a GPU. Settings come from a
file, so that the watcher's thread reads them, loads or compiles the policy and offers it while the
engine goes on: what the two threads cost each other is what is measured. For each policy the
settings file is written anew, and all steps count until the status file says that it is active, and
some after that. Steps before it, while the watcher has nothing to do, are the control.

Times are on the clock, since waiting for the other thread is the point: run it on a quiet machine,
and see from the control whether it was.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

POLICIES = ("srpt", "trail", "ltr", "hrrn", "mlfq", "gittins", "fcfs")
AFTER = 50  #: steps that count once the policy is active
CONTROL = 300  #: steps before it


def measure(
    policies: list[str], waiting: int, batch: int, wait_s: float
) -> list[dict[str, object]]:
    """One row for each exchange."""
    from bench.scheduler_overhead import TimedEngine
    from lengthwise.settings import Settings, status_path
    from lengthwise.vllm import Scheduler

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.json"

        def write(policy: str) -> str:
            return Settings(policy=policy, predictor="oracle", tau_floor=None).write(path)

        write("fcfs")
        engine = TimedEngine(Scheduler, "Scheduler", "fcfs", batch, waiting, str(path))

        def step_ms() -> float:
            time.sleep(wait_s)
            start = time.perf_counter()
            engine.step()
            return (time.perf_counter() - start) * 1e3

        for policy in policies:
            control = [step_ms() for _ in range(CONTROL)]
            began, digest = time.monotonic(), write(policy)
            times = [step_ms()]
            while json.loads(status_path(path).read_text())["settings_sha256"] != digest:
                times.append(step_ms())
            active_s = time.monotonic() - began
            times += [step_ms() for _ in range(AFTER)]
            rows.append(
                {
                    "policy": policy,
                    "active_s": round(active_s, 2),
                    "steps": len(times),
                    "control_ms": round(statistics.median(control), 2),
                    "control_longest_ms": round(max(control), 2),
                    "median_ms": round(statistics.median(times), 2),
                    "longest_ms": round(max(times), 2),
                    "added_ms": round(max(times) - statistics.median(control), 2),
                }
            )
        engine._scheduler.shutdown()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print a list of rows on stdout")
    parser.add_argument("--policies", default=",".join(POLICIES), help="default: %(default)s")
    parser.add_argument("--waiting", type=int, default=1_000, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=16, help="slots, default: %(default)s")
    parser.add_argument(
        "--wait-ms", type=float, default=10.0, help="between two steps, default: %(default)s"
    )
    parser.add_argument("--cold", action="store_true", help="nothing has been compiled before")
    arguments = parser.parse_args()
    if arguments.cold:
        folder = tempfile.mkdtemp(prefix="lengthwise-cold-")
        command = [argument for argument in sys.argv if argument != "--cold"]
        os.environ["NUMBA_CACHE_DIR"] = folder
        os.execv(sys.executable, [sys.executable, *command])

    rows = measure(
        arguments.policies.split(","), arguments.waiting, arguments.batch, arguments.wait_ms / 1e3
    )
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"load of the machine, 1 min: {os.getloadavg()[0]:.1f}")
    print("policy    active s  steps  control: median  longest  swap: median  longest  added, ms")
    for row in rows:
        print(
            f"{row['policy']:<9} {row['active_s']:>8} {row['steps']:>6} {row['control_ms']:>16}"
            f" {row['control_longest_ms']:>8} {row['median_ms']:>13} {row['longest_ms']:>8}"
            f" {row['added_ms']:>10}"
        )


if __name__ == "__main__":
    main()
