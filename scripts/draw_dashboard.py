"""Draw deploy/grafana-dashboard.json: the panels of dashboard_panels.py.

    .venv/bin/python scripts/draw_dashboard.py

Import the file in Grafana (10 or later) and choose the Prometheus that scrapes vLLM's `/metrics`
and the scheduler's. A panel of something that does not run (a probe, a predict-server) is empty.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts.dashboard_panels import ROWS, Panel

PATH: Final = Path(__file__).parents[1] / "deploy" / "grafana-dashboard.json"
WIDTH, HEIGHT, COLUMNS = 8, 8, 3
SOURCE: Final = {"type": "prometheus", "uid": "${source}"}


def queries() -> Iterator[str]:
    """Every query of every panel."""
    for panels in ROWS.values():
        for panel in panels:
            yield from panel.queries.values()


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    placed: list[dict[str, Any]] = []
    top = 0
    for title, panels in ROWS.items():
        placed.append({"type": "row", "title": title, "gridPos": place(0, top, 24, 1)})
        top += 1
        for number, panel in enumerate(panels):
            row, column = divmod(number, COLUMNS)
            where = place(column * WIDTH, top + row * HEIGHT, WIDTH, HEIGHT)
            placed.append(drawn(panel) | {"gridPos": where})
        top += -(-len(panels) // COLUMNS) * HEIGHT
    return {
        "title": "Lengthwise",
        "uid": "lengthwise",
        "tags": ["vllm", "lengthwise"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables()},
        "panels": [{"id": number, **panel} for number, panel in enumerate(placed, start=1)],
    }


def place(left: int, top: int, width: int, height: int) -> dict[str, int]:
    """Where a panel stands on the grid of 24 columns."""
    return {"x": left, "y": top, "w": width, "h": height}


def drawn(panel: Panel) -> dict[str, Any]:
    """A panel as Grafana reads it."""
    defaults = {"unit": panel.unit, "custom": {"axisSoftMin": 0}}
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.says,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": query, "legendFormat": legend}
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def variables() -> list[dict[str, Any]]:
    """What is chosen above the panels: the data source and the engines."""
    return [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "engine",
            "label": "Engine",
            "type": "query",
            "datasource": SOURCE,
            "query": "label_values(lengthwise_steps_total, engine)",
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
        },
    ]


def draw() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(draw(), encoding="utf-8")
