"""report.html, results.json and the terminal's tables."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lengthwise.measure import ResultsWriter, RoundInfo, compare, read_results, write_report
from lengthwise.measure.wording import comparison_table, serving_results
from tests.support.measure_rounds import RUN, append_round, failed, write_run

ROW_KEYS = {
    "policy", "load", "completed", "failed", "mean_e2el_ms", "p99_e2el_ms", "mean_ttft_ms",
    "p99_ttft_ms", "mean_latency_per_output_token_ms", "max_waiting_time_ms", "preemptions",
    "gap_closed",
}  # fmt: skip
VOID = {"meta", "wbr"}


class Page(HTMLParser):
    """Checks that tags are balanced and collects ids, addresses and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two loads with its report written."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    writer = ResultsWriter(folder, RUN)
    number = 0
    for load in ("burst", "1.2"):
        for policy, latency in (("fcfs", 4.0), ("srpt:blend=0.9", 2.0), ("oracle", 1.0)):
            latencies = [latency * step / 10 for step in range(1, 31)]
            append_round(writer, number, policy, latencies, load=load)
            number += 1
    write_report(folder, read_results(folder))
    return folder


def test_rows_have_the_promised_keys(folder: Path) -> None:
    rows = json.loads((folder / "results.json").read_text())
    assert [(row["policy"], row["load"]) for row in rows] == [
        ("fcfs", "burst"), ("srpt:blend=0.9", "burst"), ("oracle", "burst"),
        ("fcfs", 1.2), ("srpt:blend=0.9", 1.2), ("oracle", 1.2),
    ]  # fmt: skip
    for row in rows:
        assert row.keys() >= ROW_KEYS
        assert (row["completed"], row["failed"]) == (30, 0)
        assert (row["rounds"], row["flagged_rounds"]) == (1, 0)
    assert rows[1]["gap_closed"] == pytest.approx(2 / 3)
    assert rows[1]["factor_mean_e2el"] == pytest.approx(2.0)
    assert rows[1]["mean_e2el_ms"] == pytest.approx(2000 * 1.55)


def test_the_page_is_whole_and_needs_nothing_from_outside(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert "script" not in page.tags
    assert all(address.startswith("#") for address in page.addresses)
    assert {address[1:] for address in page.addresses} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"url\((?!#)|@import", text)
    for needed in ("prefers-color-scheme: dark", "viewport", "Machines drift."):
        assert needed in text


def test_the_page_says_what_was_measured(folder: Path) -> None:
    page = Page()
    page.feed((folder / "report.html").read_text())
    assert "srpt:blend=0.9 has a 2.00\N{MULTIPLICATION SIGN} lower mean latency" in page.text
    assert "67 %" in page.text
    assert "prompts <b>&</b>" in page.text  # escaped in the source
    assert page.text.count("Requests not yet answered") == 2  # one for each load
    assert RUN.command in page.text


def test_the_same_records_give_the_same_page(folder: Path) -> None:
    before = (folder / "report.html").read_bytes()
    write_report(folder, read_results(folder))
    assert (folder / "report.html").read_bytes() == before


def test_no_colour_of_the_drawings_is_left(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert "#0a0b" not in text
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", text))
    defined = set(re.findall(r"(--[a-z0-9-]+):", text))
    assert used <= defined


def test_a_run_in_which_every_request_failed(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, RUN)
    for number, policy in enumerate(("fcfs", "ltr")):
        writer.append(RoundInfo(number, policy, "burst", 0), [failed(0), failed(1)])
    write_report(tmp_path, read_results(tmp_path))
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["completed"], row["failed"], row["mean_e2el_ms"]) for row in rows] == [
        (0, 2, None),
        (0, 2, None),
    ]
    assert "No requests were completed" in (tmp_path / "report.html").read_text()


def test_a_policy_whose_options_are_longer_than_a_drawing_is_wide(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, RUN)
    label = f"srpt:max_overtakes=50;predictor=/{'a-long-way/' * 8}p"
    for number, policy in enumerate(("fcfs", label)):
        append_round(writer, number, policy, [1.0, 2.0])
    write_report(tmp_path, read_results(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "max_overtakes=50" in page
    assert page.count("a-long-way/") >= 8


def test_the_terminal_table_fits_80_columns(folder: Path) -> None:
    console = Console(file=StringIO(), width=80)
    console.print(comparison_table(compare(read_results(folder))))
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    row = next(line for line in text.splitlines() if line.strip().startswith("oracle"))
    assert "4.00\N{MULTIPLICATION SIGN}" in row
    assert "100 %" in row


def test_the_layout_of_vllm_bench_serve(folder: Path) -> None:
    text = serving_results(compare(read_results(folder)), "fcfs")
    block = text.split("\n\n")[0].splitlines()[1:]
    assert block[0] == "============ Serving Benchmark Result ============"
    assert block[-1] == "=" * 50
    assert "Successful requests:                     30        " in block
    assert "---------------Time to First Token----------------" in block
    assert "-----Time per Output Token (excl. 1st token)------" in block
    assert "Mean E2EL (ms):                          6200.00   " in block
    titles = [line.strip("-") for line in block if line.startswith("--")]
    assert titles[:4] == [
        "Time to First Token",
        "Time per Output Token (excl. 1st token)",
        "Inter-token Latency",
        "End-to-end Latency",
    ]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium to lay the page out")
def test_a_browser_draws_the_page(folder: Path, tmp_path: Path) -> None:
    """At phone width nothing but the tables may be wider than the window."""
    assert CHROMIUM is not None
    probe = (
        "<script>addEventListener('load', () => { document.body.dataset.width = "
        "document.documentElement.scrollWidth + ' ' + innerWidth; document.body.dataset.drawn = "
        "[...document.querySelectorAll('figure svg')].filter(e => e.getBoundingClientRect()"
        ".height > 100).length })</script></body>"
    )
    page = tmp_path / "page.html"
    page.write_text((folder / "report.html").read_text().replace("</body>", probe))
    dump = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if dump.returncode != 0 or "data-drawn" not in dump.stdout:
        pytest.skip("chromium does not run here")
    found = re.search(r'data-width="(\d+) (\d+)"', dump.stdout)
    assert found is not None
    assert int(found[1]) <= int(found[2])
    assert 'data-drawn="12"' in dump.stdout
