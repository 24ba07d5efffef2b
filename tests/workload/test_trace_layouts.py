"""Traces as they are published: nested, drawn, in sessions, of any block size.

The rows are made up, in layouts as published: the sources are named where the layouts are read.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lengthwise.errors import InputError
from lengthwise.workload.dataset import load_dataset
from lengthwise.workload.inspection import inspect_trace
from lengthwise.workload.open_trace import is_trace
from lengthwise.workload.records import UnusableError
from lengthwise.workload.trace import load_trace, spread_ties
from tests.support.trace_files import Row, lines

SHARED = Path(__file__).parents[3] / "shared" / "fixtures"


# Nested rows ----------------------------------------------------------------------------------


def test_conversations_of_weka(tmp_path: Path) -> None:
    """Blocks are those of their own conversation, and agents within it have requests, too."""
    rows = [
        {
            "id": "c1",
            "requests": [
                {"t": 0.0, "type": "n", "in": 130, "out": 20, "hash_ids": [1, 2]},
                {
                    "type": "subagent",
                    "t": 1.0,
                    "requests": [{"t": 1.5, "in": 70, "out": 9, "hash_ids": [1]}],
                },
                {"t": 4.25, "type": "s", "in": 200, "out": 30, "hash_ids": [1, 2, 3]},
            ],
        },
        {"id": "c2", "requests": [{"t": 0.5, "in": 64, "out": 5, "hash_ids": [1]}]},
    ]
    for path in (lines(tmp_path / "weka.jsonl", rows), tmp_path / "weka.json"):
        if path.suffix == ".json":
            path.write_text(json.dumps(rows))
        trace = load_trace(path)
        assert trace.layout == "weka"
        assert trace.arrival_s.tolist() == [0.0, 0.5, 1.5, 4.25]
        assert trace.output_tokens.tolist() == [20, 5, 9, 30]
        assert trace.hash_tokens == 64
        assert trace.block_hashes is not None
        assert trace.block_hashes.tolist() == [0, 1, 2, 0, 0, 1, 3]
        assert any("begin at 0 s" in note for note in trace.notes)
    one = tmp_path / "one.json"
    one.write_text(json.dumps(rows[0], indent=2))
    assert len(load_trace(one)) == 3
    folder = tmp_path / "traces"
    folder.mkdir()
    for number, row in enumerate(rows):
        (folder / f"trace_{number}.json").write_text(json.dumps(row))
    assert load_trace(folder).output_tokens.tolist() == [20, 5, 9, 30]
    (folder / "trace_0.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="no conversations of agents"):
        load_trace(folder)


def test_blocks_are_as_large_as_weka_says(tmp_path: Path) -> None:
    request = {"t": 0.0, "in": 1300, "out": 20, "hash_ids": list(range(10))}
    path = lines(tmp_path / "weka.jsonl", [{"id": "c", "block_size": 128, "requests": [request]}])
    assert load_trace(path).hash_tokens == 128


def test_runs_of_guidellm(tmp_path: Path) -> None:
    def request(start: float | None, tokens: int) -> Row:
        return {
            "request_args": "{}",
            "info": {"timings": {"request_start": start, "resolve_start": 99.0}},
            "input_metrics": {"text_tokens": 12, "total_tokens": 12},
            "output_metrics": {"text_tokens": tokens},
        }

    requests = {"successful": [request(12.5, 4), request(10.0, 9)], "errored": [request(11.0, 3)]}
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps({"args": {}, "benchmarks": [{"requests": requests}]}))
    trace = load_trace(path)
    assert trace.layout == "guidellm"
    assert trace.arrival_s.tolist() == [0.0, 2.5]
    assert trace.output_tokens.tolist() == [9, 4]
    assert trace.left_out == {"the request failed": 1}


def test_runs_of_aiperf(tmp_path: Path) -> None:
    start = 1759813207532900363

    def record(offset_ns: int, metrics: Row, error: Row | None = None) -> Row:
        metadata = {"conversation_id": "c", "request_start_ns": start + offset_ns}
        return {"metadata": metadata, "metrics": metrics, "error": error}

    tokens = {
        "input_sequence_length": {"value": 550, "unit": "tokens"},
        "output_sequence_length": {"value": 9, "unit": "tokens"},
    }
    failed = record(5, {"error_isl": {"value": 550, "unit": "tokens"}}, {"code": 499})
    rows = [record(2 * 10**9, tokens), record(0, tokens), failed]
    trace = load_trace(lines(tmp_path / "profile_export.jsonl", rows))
    assert trace.layout == "aiperf"
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 2.0], abs=1e-6)
    assert trace.left_out == {"the request failed": 1}


def test_what_servegen_generates(tmp_path: Path) -> None:
    rows = [
        {"request_id": 0, "timestamp": 0.5, "data": {"input_tokens": 5, "output_tokens": 7}},
        {
            "request_id": 1,
            "timestamp": 0.75,
            "data": {"text_tokens": 5, "image_tokens": [100, 20], "output_tokens": 7},
        },
        {
            "request_id": 2,
            "timestamp": 1.0,
            "data": {"input_tokens": 5, "output_tokens": 7, "reason_ratio": 0.5},
        },
        {"request_id": 3, "timestamp": 1.0, "data": {"output_tokens": None}},
    ]
    trace = load_trace(lines(tmp_path / "requests.jsonl", rows))
    assert trace.layout == "servegen"
    assert trace.prompt_tokens.tolist() == [5, 125, 5]
    assert [rejection.row for rejection in trace.rejected] == [4]


def test_detailed_results_of_vllms_benchmark(tmp_path: Path) -> None:
    document = {
        "model_id": "m",
        "input_lens": [10, 20, 30],
        "output_lens": [5, 6, 0],
        "start_times": [2.0, 1.0, 3.0],
        "errors": ["", "", "refused"],
        "itls": [[0.1], [0.1], []],
    }
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document))
    trace = load_trace(path)
    assert trace.layout == "vllm bench"
    assert trace.prompt_tokens.tolist() == [20, 10]
    assert trace.left_out == {"the request failed": 1}


def test_results_that_vllms_benchmark_appended(tmp_path: Path) -> None:
    """One run a line; older versions write no times, and their requests come at once."""
    run = {"input_lens": [10, 20], "output_lens": [5, 6], "ttfts": [0.1, 0.1], "errors": ["", ""]}
    path = tmp_path / "result.json"
    path.write_text("".join(json.dumps({**run, "start_times": [t, t + 1]}) + "\n" for t in (5, 1)))
    assert load_trace(path).arrival_s.tolist() == [0.0, 1.0, 4.0, 5.0]
    path.write_text(json.dumps(run))
    trace = load_trace(path)
    assert trace.arrival_s.tolist() == [0.0, 0.0]
    assert "all requests arrive at once" in trace.notes[-1]


def test_prompts_of_a_trace_are_counted(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Hi"}]
    rows = [
        {"session_id": "a", "timestamp": 500, "messages": said, "output_length": 4},
        {"session_id": "b", "timestamp": 0, "text_input": "a b c", "output_length": 7},
        {"session_id": "a", "payload": {"messages": said * 3}, "output_length": 5, "delay": 250},
        {"session_id": "b", "messages": said, "output_length": 6},
    ]
    path = lines(tmp_path / "mooncake.jsonl", rows)
    assert is_trace(path)
    trace = load_trace(
        path, count_prompt=lambda chat, text: len(chat.messages()) if chat else len(text.split())
    )
    assert trace.arrival_s.tolist() == [0.0, 0.0, 0.5, 0.75]
    assert trace.prompt_tokens.tolist() == [3, 1, 1, 3]
    assert trace.output_tokens.tolist() == [7, 6, 4, 5]
    assert trace.after is not None
    assert trace.after.tolist() == [-1, 0, -1, 2]


# Logs in another order than that of arrival ---------------------------------------------------


def test_rows_of_litellm_are_sorted(tmp_path: Path) -> None:
    path = tmp_path / "spend.csv"
    path.write_text(
        "request_id,startTime,endTime,model,prompt_tokens,completion_tokens\n"
        "1,2026-11-01T10:00:00.500Z,2026-11-01T10:00:02.5Z,m,120,40\n"
        "2,2026-11-01T09:59:59.250Z,2026-11-01T10:00:09.5Z,n,90,200\n"
        "3,2026-11-01T10:00:01.000Z,2026-11-01T10:00:01.5Z,m,0,0\n"
    )
    trace = load_trace(path)
    assert trace.layout == "litellm"
    assert trace.arrival_s.tolist() == [0.0, 1.25]
    assert trace.output_tokens.tolist() == [200, 40]
    assert trace.left_out == {"the request failed": 1}
    assert load_trace(path, where={"model": "m"}).output_tokens.tolist() == [40]
    with pytest.raises(InputError, match="no row has model=x: there are m, n"):
        load_trace(path, where={"model": "x"})
    with pytest.raises(InputError, match="no column 'modle': did you mean 'model'"):
        load_trace(path, where={"modle": "x"})


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("condition", "chosen"),
    [
        ({"ok": "true"}, [5, 7]),
        ({"ok": "True"}, [5, 7]),
        ({"t": "1"}, [6]),
        ({"t": "1.0"}, [6]),
        ({"n": "3"}, [6]),
        ({"half": "0.1"}, [6]),
        ({"name": "1"}, [5, 6]),
    ],
)
def test_a_condition_means_the_same_of_traces_and_of_prompts(
    tmp_path: Path, suffix: str, condition: dict[str, str], chosen: list[int]
) -> None:
    rows = [
        {"output_tokens": 5, "ok": True, "t": 0.5, "n": 2, "half": 0.3, "name": "1"},
        {"output_tokens": 6, "ok": False, "t": 1.0, "n": 3, "half": 0.1, "name": "1"},
        {"output_tokens": 7, "ok": True, "t": 2.5, "n": 4, "half": 0.2, "name": "1.0"},
    ]

    def written(name: str, **beside: object) -> Path:
        path = tmp_path / f"{name}{suffix}"
        table = pa.Table.from_pylist([{**beside, **row} for row in rows])
        if suffix == ".parquet":
            pq.write_table(table, path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
        return path

    trace = load_trace(written("trace", arrival_s=0.0, prompt_tokens=3), where=condition)
    assert trace.output_tokens.tolist() == chosen
    prompts = load_dataset(written("prompts", prompt="Say it"), where=condition)
    assert prompts.lengths.tolist() == chosen


def test_a_value_that_no_row_has_is_told_from_conditions_that_never_meet(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    row = {"arrival_s": 0, "prompt_tokens": 3, "output_tokens": 5}
    path.write_text(
        "".join(json.dumps({**row, "ok": place == 0, "n": place}) + "\n" for place in range(2))
    )
    with pytest.raises(InputError, match="no row has n=7: there are 0, 1"):
        load_trace(path, where={"n": "7"})
    with pytest.raises(InputError) as raised:
        load_trace(path, where={"ok": "True", "n": "1"})
    assert "ok=True" not in str(raised.value)


def test_requests_of_the_same_second_are_spread(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,1,1,2,API log\n" + "7,GPT-4,1,1,2,API log\n" * 4 + "9,GPT-4,0,0,0,API log\n"
    )
    trace = load_trace(path)
    assert trace.arrival_s.tolist() == [0, 2, 2.25, 2.5, 2.75]
    (note,) = trace.notes
    assert "4 requests of the same second were spread over it" in note
    assert trace.left_out == {"the request failed": 1}
    assert len(load_trace(path, where={"Model": "ChatGPT"})) == 1
    assert spread_ties(np.array([0.0, 0.0, 1.5]))[0].tolist() == [0.0, 0.0, 1.5]


# Blocks and sessions --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 64, 512, 1024])
@pytest.mark.parametrize("whole", [False, True], ids=["begun", "full"])
def test_the_size_of_blocks_is_told(tmp_path: Path, size: int, whole: bool) -> None:
    """Whoever wrote it: by requests whose last block is begun, or is left out."""
    random = np.random.default_rng(size)
    lengths = random.integers(3 * size, 40 * size, 50)
    counts = lengths // size if whole else -(-lengths // size)
    rows = [
        {"timestamp": 0, "input_length": int(n), "output_length": 1, "hash_ids": list(range(k))}
        for n, k in zip(lengths, counts, strict=True)
    ]
    path = lines(tmp_path / "trace.jsonl", rows)
    trace = load_trace(path)
    assert trace.hash_tokens == size
    assert not trace.rejected
    assert any(f"blocks have {size} tokens" in note for note in trace.notes) == (size != 512)
    assert load_trace(path, block_tokens=8 if size > 8 else 4).hash_tokens == 8


def test_blocks_of_no_known_size_can_be_given_one(tmp_path: Path) -> None:
    ids = list(range(9))
    rows = [{"timestamp": 0, "input_length": 700, "output_length": 1, "hash_ids": ids}] * 3
    path = lines(tmp_path / "trace.jsonl", rows)
    with pytest.raises(InputError, match=r"more blocks of 512 tokens .* --block-tokens"):
        load_trace(path)
    assert load_trace(path, block_tokens=80).hash_tokens == 80


def test_later_turns_of_a_session_come_after_a_delay(tmp_path: Path) -> None:
    def turn(session: str, tokens: int, **when: float) -> Row:
        return {"session_id": session, "input_length": 9, "output_length": tokens, **when}

    rows = [
        turn("a", 1, timestamp=0),
        turn("b", 2, timestamp=1000),
        turn("a", 3, delay=2500),
        turn("a", 4, delay=500),
        turn("c", 5, delay=500),
    ]
    trace = load_trace(lines(tmp_path / "sessions.jsonl", rows))
    assert trace.layout == "mooncake"
    assert trace.arrival_s.tolist() == [0.0, 1.0, 2.5, 3.0]
    assert trace.output_tokens.tolist() == [1, 2, 3, 4]
    assert [tuple(rejection) for rejection in trace.rejected] == [(5, "timestamp is missing")]
    assert any("2 requests are later turns of sessions" in note for note in trace.notes)
    assert trace.after is not None
    assert trace.delay_s is not None
    assert trace.after.tolist() == [-1, -1, 0, 2]
    assert trace.delay_s.tolist() == [0, 0, 2.5, 0.5]
    part = trace.between(1, 9)  # without the first turn of its session
    assert part.after is not None
    assert part.after.tolist() == [-1, -1, 1]


def test_answers_that_are_not_given_can_be(tmp_path: Path) -> None:
    rows: list[Row] = [{"timestamp": 1, "input_length": 655, "hash_ids": [0, 1]}] * 2
    path = lines(tmp_path / "trace.jsonl", rows)
    with pytest.raises(UnusableError, match="--answer-tokens"):
        load_trace(path)
    trace = load_trace(path, answer_tokens=99)
    assert (trace.layout, trace.output_tokens.tolist()) == ("mooncake", [99, 99])


def test_requests_without_times_arrive_at_once(tmp_path: Path) -> None:
    rows = [{"input_length": 10, "output_length": 4}, {"input_length": 11, "output_length": 5}]
    trace = load_trace(lines(tmp_path / "trace.jsonl", rows))
    assert trace.arrival_s.tolist() == [0.0, 0.0]
    assert any("--load" in note for note in trace.notes)
    batch = [{"request_id": n, "type": "text", "duration": 9, **row} for n, row in enumerate(rows)]
    assert load_trace(lines(tmp_path / "batch.jsonl", batch)).layout == "servegen offline"


# ServeGen's clients ---------------------------------------------------------------------------


def client(folder: Path, number: int, windows: str) -> Path:
    path = folder / f"chunk-{number}-trace.csv"
    path.write_text(windows)
    histograms = {"input_tokens": "{10: 0.25, 20: 0.75}", "output_tokens": "{5: 0.5, 6: 0.5}"}
    lengths = {"0": histograms, "1200": dict.fromkeys(histograms, "{}")}
    (folder / f"chunk-{number}-dataset.json").write_text(json.dumps(lengths))
    return path


def test_requests_are_drawn_from_clients(tmp_path: Path) -> None:
    windows = "0,0.5,2.0,Weibull,0.5,1.0\n600,0,0,,0,0\n1200,1.5,1.0,Gamma,1.0,0.7\n"
    path = client(tmp_path, 3, windows)
    trace = load_trace(path, seed=1)
    assert trace.layout == "servegen client"
    assert np.isin(trace.prompt_tokens, [10, 20]).all()
    assert 0.7 < (trace.prompt_tokens == 20).mean() < 0.8
    assert np.isin(trace.output_tokens, [5, 6]).all()
    first = trace.arrival_s < 600
    assert 290 <= first.sum() <= 300
    assert len(trace) == pytest.approx(300 + 900, abs=4)
    assert not ((trace.arrival_s > 601) & (trace.arrival_s < 1199)).any()
    assert np.array_equal(load_trace(path, seed=1).arrival_s, trace.arrival_s)
    assert not np.array_equal(load_trace(path, seed=2).arrival_s, trace.arrival_s)
    assert len(load_trace(path, limit=7)) == 7
    client(tmp_path, 4, windows)
    (tmp_path / "chunk-4-trace.csv.bak").write_text("an editor's copy is no client")
    assert len(load_trace(tmp_path)) == pytest.approx(2 * len(trace), abs=8)


def test_clients_need_their_lengths(tmp_path: Path) -> None:
    path = client(tmp_path, 3, "0,0.5,2.0,Weibull,0.5,1.0\n")
    (tmp_path / "chunk-3-dataset.json").unlink()
    with pytest.raises(UnusableError, match=r"chunk-N-dataset\.json"):
        load_trace(path)
    (tmp_path / "chunk-3-dataset.json").write_text('{"0": {"output_tokens": "__import__(1)"}}')
    with pytest.raises(InputError, match="not the lengths of a client"):
        load_trace(path)


def test_a_window_before_the_first_lengths_has_those(tmp_path: Path) -> None:
    path = client(tmp_path, 3, "0,0.5,2.0,Gamma,0.5,1.0\n")
    lengths = path.with_name("chunk-3-dataset.json")
    lengths.write_text(lengths.read_text().replace('"0"', '"600"'))
    assert np.isin(load_trace(path).output_tokens, [5, 6]).all()


@pytest.mark.parametrize(
    ("windows", "reason"),
    [
        ("0,0.5,2,Gamma,1,1\n600,1,1,Pareto,1,1\n", "row 2: unknown pattern 'Pareto'"),
        ("0,nan,2,Gamma,1,1\n", "row 1: a number that is negative or not finite"),
        ("0,1e999,2,Gamma,1,1\n", "row 1: a number that is negative or not finite"),
        ("0,-1,2,Gamma,1,1\n", "row 1: a number that is negative or not finite"),
        ("0,1,2,Gamma,-1,1\n", "row 1: a number that is negative or not finite"),
        ("600,1,2,Gamma,1,1\n0,1,2,Gamma,1,1\n", "each after the one before"),
        ("0,1,2,Gamma,1,1\n\ud800", "not the windows of a client"),
    ],
)
def test_windows_that_are_none_are_refused(tmp_path: Path, windows: str, reason: str) -> None:
    client(tmp_path, 3, "").write_bytes(windows.encode(errors="surrogatepass"))
    with pytest.raises(InputError, match=reason):
        load_trace(tmp_path)


@pytest.mark.parametrize("shares", ["{10.5: 1.0}", "{-3: 1.0}", "{3: -1.0}", "{9999999999999: 1}"])
def test_lengths_that_are_none_are_refused(tmp_path: Path, shares: str) -> None:
    path = client(tmp_path, 3, "0,0.5,2.0,Gamma,0.5,1.0\n")
    lengths = {"0": {"input_tokens": shares, "output_tokens": "{5: 1.0}"}}
    path.with_name("chunk-3-dataset.json").write_text(json.dumps(lengths))
    with pytest.raises(InputError, match="not the lengths of a client"):
        load_trace(path)


@pytest.mark.parametrize(
    ("name", "layout", "rows"),
    [
        ("azure2023.csv", "azure", 3),
        ("azure2024.csv", "azure", 3),
        ("burst_v10.csv", "burstgpt", 3),
        ("burst_v12.csv", "burstgpt", 2),
        ("litellm.csv", "litellm", 2),
        ("mooncake.jsonl", "mooncake", 2),
        ("mooncake64.jsonl", "mooncake", 2),
        ("mooncake_sessions.jsonl", "mooncake", 2),
        ("vllm_bench.json", "vllm bench", 2),
        ("weka.jsonl", "weka", 2),
    ],
)
def test_files_as_people_have_them_are_read(name: str, layout: str, rows: int) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the file is not there: {name}")
    trace = load_trace(path)
    assert (trace.layout, len(trace), trace.rejected) == (layout, rows, [])
    assert is_trace(path)
    assert inspect_trace(path)["rows"] == rows
