"""Draw docs/assets/overview.svg: the same requests in the order they came, and short answers first.

    .venv/bin/python scripts/draw_overview.py

An illustration, not a measurement: nine requests on two slots, one unit of time per output token,
no preemption, lengths known. The bars and the means are computed here by list scheduling.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path

LENGTHS = [9, 12, 2, 7, 1, 3, 2, 4, 1]  # output tokens, in order of arrival, all at time 0
SLOTS = 2
SHORT = 4  # up to this many tokens a request is coloured as short

UNIT = 31  # width of one token, in pixels
ROW = 26
LEFT = 24
PANEL = 62 + SLOTS * ROW

STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de }
  text { fill: #1f2328; font: 14px system-ui, sans-serif }
  .faint { fill: #59636e; font-size: 13px }
  .title { font-weight: 600 }
  .short { fill: #009e73 } .long { fill: #d55e00 }
  .label { fill: #ffffff; font-size: 13px; text-anchor: middle }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #3d444d }
    text { fill: #f0f6fc }
    .faint { fill: #9198a1 }
  }
"""


def schedule(order: Sequence[int]) -> list[tuple[int, int, int]]:
    """List scheduling: each request goes to the slot that is free first.

    Returns:
        (request, slot, start) for each request, in the order given.
    """
    slots = [(0, slot) for slot in range(SLOTS)]
    placed = []
    for request in order:
        start, slot = heapq.heappop(slots)
        placed.append((request, slot, start))
        heapq.heappush(slots, (start + LENGTHS[request], slot))
    return placed


def panel(title: str, order: Sequence[int], top: int) -> str:
    """One schedule as bars, with its mean latency."""
    placed = schedule(order)
    mean = sum(start + LENGTHS[request] for request, _, start in placed) / len(placed)
    parts = [
        f'<text class="title" x="{LEFT}" y="{top + 16}">{title}</text>',
        f'<text class="faint" x="{LEFT}" y="{top + 36}">mean time until the last token: '
        f"{mean:.1f}</text>",
    ]
    for request, slot, start in placed:
        length = LENGTHS[request]
        x, y, width = LEFT + start * UNIT, top + 46 + slot * ROW, length * UNIT - 2
        kind = "short" if length <= SHORT else "long"
        parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{ROW - 4}" rx="3"/>'
            f'<text class="label" x="{x + width / 2:g}" y="{y + 16}">{request + 1}</text>'
        )
    return "\n".join(parts)


def draw() -> str:
    """The whole picture."""
    requests = range(len(LENGTHS))
    shortest_first = sorted(requests, key=LENGTHS.__getitem__)
    ends = [
        start + LENGTHS[request]
        for order in (requests, shortest_first)
        for request, _, start in schedule(order)
    ]
    width, height = 2 * LEFT + max(ends) * UNIT, 2 * PANEL + 70
    panels = [
        panel("First come, first served: short requests wait behind long ones", requests, 16),
        panel("Short answers first: the same work, the same slots", shortest_first, 28 + PANEL),
    ]
    legend = (
        f'<text class="faint" x="{LEFT}" y="{height - 14}">Two slots; a bar is one request, its '
        "number the order of arrival, its width the length of its answer. Illustration.</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="The same nine requests scheduled in order of arrival and shortest first">\n'
        f"<style>{STYLE}</style>\n"
        f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>\n'
        + "\n".join(panels)
        + f"\n{legend}\n</svg>\n"
    )


if __name__ == "__main__":
    target = Path(__file__).parents[1] / "docs" / "assets" / "overview.svg"
    target.write_text(draw(), encoding="utf-8")
