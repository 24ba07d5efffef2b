"""The length log on disk: what is damaged is left out and counted, and nothing else is."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.workload.length_log import (
    LengthLogReader,
    Position,
    decode_line,
    encode_features,
    encode_line,
    last_arrival_s,
    read_answers,
    segments,
)
from lengthwise.workload.trace import load_trace
from tests.support.length_logs import write_segment

COUNT = 12
PROMPTS = [f"Name {row} cities." for row in range(COUNT)]
LENGTHS = list(range(10, 10 + COUNT))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_segment(tmp_path_factory.mktemp("log"), PROMPTS, LENGTHS).read_bytes()


def read(folder: Path) -> tuple[list[int], LengthLogReader]:
    reader = LengthLogReader(folder)
    return [answer.output_tokens for answer in reader.read_new()], reader


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.floats(), min_size=1))
def test_a_line_comes_back_as_it_was(values: dict[str, object]) -> None:
    line = encode_line(values)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert repr(decode_line(line)) == repr(values)


@given(st.lists(st.integers(0, 2**19), unique=True))
def test_features_come_back_sorted(features: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "lengths-00000001.jsonl"
        line = {"features": encode_features(np.array(features, np.int32)), "output_tokens": 1}
        path.write_bytes(encode_line({"schema": "lengthwise.lengths/1"}) + encode_line(line))
        (answer,) = LengthLogReader(Path(name)).read_new()
    assert answer.features.tolist() == sorted(features)


@given(st.data())
@settings(deadline=None)
def test_a_changed_byte_costs_no_more_than_its_line(whole: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    with tempfile.TemporaryDirectory() as name:
        damaged = whole[:place] + bytes([byte]) + whole[place + 1 :]
        (Path(name) / "lengths-00000001.jsonl").write_bytes(damaged)
        write_segment(Path(name), ["Next."], [99])
        lengths, reader = read(Path(name))
    assert lengths[-1] == 99
    if place <= whole.index(b"\n"):
        assert lengths == [99]
        assert list(reader.unreadable) == ["lengths-00000001.jsonl"]
    else:
        # A changed end of line takes the line behind it along.
        assert COUNT - 2 <= len(lengths) - 1 <= COUNT - 1
        assert set(lengths) < {*LENGTHS, 99}
        assert reader.damaged in (1, 2)


@given(st.data())
@settings(deadline=None)
def test_a_segment_that_was_cut_short_keeps_its_whole_lines(
    whole: bytes, data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, len(whole) - 1))
    rest = whole[:size]
    lines = rest.count(b"\n")
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "lengths-00000001.jsonl").write_bytes(rest)
        last, reader = read(Path(name))
        assert last == LENGTHS[: max(0, lines - 1)]
        assert (reader.damaged, reader.unreadable) == (0, {})
        assert reader.unfinished is not rest.endswith(b"\n") or not rest
        write_segment(Path(name), ["Next."], [99])
        lengths, reader = read(Path(name))
    assert lengths == [*last, 99]
    cut = bool(rest) and not rest.endswith(b"\n")
    assert reader.damaged + len(reader.unreadable) == cut


def test_a_reader_goes_on_where_it_was(tmp_path: Path) -> None:
    reader = LengthLogReader(tmp_path)
    assert list(reader.read_new()) == []
    path = write_segment(tmp_path, PROMPTS, LENGTHS)
    data = path.read_bytes()
    cut = data.rindex(b"\n", 0, -1) + 30  # in the middle of the last line
    path.write_bytes(data[:cut])
    first = list(reader.read_new())
    assert [answer.output_tokens for answer in first] == LENGTHS[:-1]
    assert list(reader.read_new()) == []
    path.write_bytes(data)
    assert [answer.output_tokens for answer in reader.read_new()] == LENGTHS[-1:]
    write_segment(tmp_path, PROMPTS[:2], LENGTHS[:2])
    second = list(reader.read_new())
    assert [answer.output_tokens for answer in second] == LENGTHS[:2]
    positions = [answer.position for answer in (*first, *second)]
    assert positions == sorted(positions)
    assert positions[0] > Position(0, 0)
    assert reader.damaged == 0


def test_segments_that_made_room_are_not_missed(tmp_path: Path) -> None:
    for _ in range(3):
        write_segment(tmp_path, PROMPTS, LENGTHS)
    reader = LengthLogReader(tmp_path)
    next(reader.read_new())
    for _, path in segments(tmp_path)[:2]:
        path.unlink()
    assert len(list(reader.read_new())) == COUNT
    assert reader.unreadable == {}


def test_a_log_that_was_removed_and_begun_again_is_read_from_its_beginning(tmp_path: Path) -> None:
    reader = LengthLogReader(tmp_path)
    write_segment(tmp_path, PROMPTS, LENGTHS)
    assert len(list(reader.read_new())) == COUNT
    (before,) = reader.reached()
    for count in (3, 2 * COUNT):  # shorter than what was read, and longer
        segments(tmp_path)[0][1].unlink()
        path = write_segment(tmp_path, (3 * PROMPTS)[:count], [7] * count, began_s=count)
        again = [answer.output_tokens for answer in reader.read_new()]
        assert again == [7] * count
        assert list(reader.read_new()) == []
    assert before not in reader.reached()
    # Cut by hand, with the header that it had.
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    assert len(list(reader.read_new())) == 2
    assert (reader.damaged, reader.unreadable) == (0, {})


def test_a_newer_log_is_left_out_and_named(tmp_path: Path) -> None:
    header = encode_line({"schema": "lengthwise.lengths/2"})
    (tmp_path / "lengths-00000001.jsonl").write_bytes(header + encode_line({"output_tokens": 1}))
    _, reader = read(tmp_path)
    assert "lengths/2" in reader.unreadable["lengths-00000001.jsonl"]
    with pytest.raises(InputError, match="lengths/2") as raised:
        read_answers(tmp_path)
    assert "\n" not in str(raised.value)
    segments(tmp_path)[0][1].unlink()
    write_segment(tmp_path, PROMPTS, LENGTHS)  # by this version, in its place
    assert len(list(reader.read_new())) == COUNT
    assert reader.unreadable == {}


def test_a_folder_without_a_log_is_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="no length log"):
            read_answers(folder)


def test_it_is_a_trace(tmp_path: Path) -> None:
    write_segment(tmp_path, PROMPTS[:6], [5, 0, *LENGTHS[:4]], arrival_s=1e9 + 100)
    write_segment(tmp_path, PROMPTS[6:], LENGTHS[4:10], arrival_s=1e9)
    segments(tmp_path)[0][1].open("ab").write(b"half a li")
    trace = load_trace(tmp_path)
    assert trace.layout == "lengthwise log"
    assert trace.output_tokens.tolist() == [*LENGTHS[4:10], 5, *LENGTHS[:4]]
    assert trace.arrival_s[0] == 0.0
    assert trace.arrival_s[-1] == 105.0
    reasons = [rejection.reason for rejection in trace.rejected]
    assert reasons == ["damaged"]
    assert trace.left_out == {"it ended before its first token": 1}


def test_the_last_arrival_is_found(tmp_path: Path) -> None:
    assert last_arrival_s(tmp_path) == 0.0
    write_segment(tmp_path, PROMPTS, LENGTHS, arrival_s=5e8)
    (tmp_path / "lengths-00000002.jsonl").write_bytes(b"\x00" * 100)
    assert last_arrival_s(tmp_path) == 5e8 + COUNT - 1
