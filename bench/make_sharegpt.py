"""Make a file of made-up dialogues in the layout of ShareGPT, to try what reads such files.

    python bench/make_sharegpt.py build/ShareGPT.json --dialogues 5000

Questions and answers are those of the built-in model's corpus; like the real file it has dialogues
that begin with an answer, that are empty, that have a system's prompt, or several turns.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.reference.corpus import Exchange, exchanges

_MOST_TURNS = 6
_BROKEN = 0.04  # share of dialogues that are empty or begin with an answer
_SYSTEM = 0.1  # share of dialogues that have a system's prompt


def dialogues(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """So many dialogues, always the same for the same seed."""
    random = np.random.default_rng(seed)
    corpus = iter(exchanges(count * _MOST_TURNS, seed))
    for number in range(count):
        turns = 1 + int(random.geometric(0.5))
        drawn = [next(corpus) for _ in range(min(turns, _MOST_TURNS))]
        kind = random.random()
        yield {"id": f"made_{number}", "conversations": list(_messages(drawn, kind))}


def _messages(drawn: list[Exchange], kind: float) -> Iterator[dict[str, str]]:
    if kind < _BROKEN / 2:
        return
    if kind < _BROKEN:
        yield {"from": "gpt", "value": drawn[0].answer}
    elif kind < _BROKEN + _SYSTEM:
        yield {"from": "system", "value": "You are a helpful assistant."}
    for each in drawn:
        yield {"from": "human", "value": each.prompt.text}
        yield {"from": "gpt", "value": each.answer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="The .json file to write.")
    parser.add_argument("--dialogues", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", encoding="utf-8") as out:
        for number, dialogue in enumerate(dialogues(options.dialogues, options.seed)):
            out.write("[" if number == 0 else ",\n")
            json.dump(dialogue, out, ensure_ascii=False)
        out.write("]\n")
    print(f"{options.out}: {options.dialogues:,} dialogues, {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
