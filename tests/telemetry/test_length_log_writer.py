"""Writing the length log: bounded, private, and never in the way of serving."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lengthwise.counters import Counters
from lengthwise.errors import InputError
from lengthwise.predict.prediction import Prompt
from lengthwise.settings import LengthLogSettings
from lengthwise.telemetry import journal, length_log_writer
from lengthwise.telemetry.length_log_writer import LengthLog
from lengthwise.workload.length_log import LengthLogReader, read_answers, segments
from tests.support.length_logs import REFERENCE, reference_text
from tests.support.waiting import wait_until

SECRET = "The treasure of Zanzibar lies below the ninth lighthouse"
VALUES: dict[str, Any] = {"output_tokens": 7, "finished": "stop", "predictor": None, "score": None}


def log_to(folder: Path, counters: Counters | None = None, **options: Any) -> LengthLog:
    clock = options.pop("clock", time.time)
    settings = LengthLogSettings(folder=str(folder), **options)
    return LengthLog(settings, reference_text(), "a-model", counters or Counters(), clock)


def wait_for(answers: int, counters: Counters) -> None:
    wait_until(lambda: counters.logged + counters.log_lost >= answers)


def test_what_was_logged_can_be_read(tmp_path: Path) -> None:
    counters = Counters()
    log = log_to(tmp_path / "new" / "log", counters)
    ids = REFERENCE.encode_chat("Name three cities.")
    for length in (3, 1, 2):
        log.answer(Prompt(ids, {}), time.monotonic(), {**VALUES, "output_tokens": length})
    log.close()
    answers, reader = read_answers(tmp_path / "new" / "log")
    assert [answer.output_tokens for answer in answers] == [3, 1, 2]
    assert answers[0].features.size > 10
    assert answers[0].header["model"] == "a-model"
    assert answers[0].header["tokenizer_fingerprint"] == REFERENCE.fingerprint
    assert abs(answers[0].values["arrival_s"] - time.time()) < 60
    assert (counters.logged, counters.log_lost, reader.damaged) == (3, 0, 0)


def test_nobody_can_read_the_prompts(tmp_path: Path) -> None:
    ids = REFERENCE.encode_chat(SECRET)
    log = log_to(tmp_path / "private")
    log.answer(Prompt(ids, {}), 0.0, VALUES)
    log.close()
    log = log_to(tmp_path / "asked", text=True)
    log.answer(Prompt(ids, {}), 0.0, VALUES)
    log.close()
    listed = ",".join(map(str, ids[2:6]))
    for path in (tmp_path / "private").iterdir():
        if path.suffix == ".safetensors":  # the vocabulary, the same for whatever is served
            continue
        text = path.read_text()
        for word in (*SECRET.split(), listed, listed.replace(",", ", "), "token_ids"):
            assert len(word) < 4 or word not in text
    (answer,), _ = read_answers(tmp_path / "asked")
    assert SECRET in answer.values["text"]
    (answer,), _ = read_answers(tmp_path / "private")
    assert "text" not in answer.values
    # Their order would be the order of the words.
    assert answer.features.tolist() == sorted(answer.features.tolist())


def test_the_log_stays_within_its_bound_and_the_oldest_goes_first(tmp_path: Path) -> None:
    counters = Counters()
    log = log_to(tmp_path, counters, megabytes=1)
    ids = REFERENCE.encode_chat(" ".join(f"word{number}" for number in range(150)))
    most = 0
    for block in range(12):
        for row in range(50):
            log.answer(Prompt(ids, {}), 0.0, {**VALUES, "output_tokens": 50 * block + row})
        wait_for(50 * (block + 1), counters)
        most = max(most, sum(path.stat().st_size for _, path in segments(tmp_path)))
    log.close()
    answers, reader = read_answers(tmp_path)
    assert (counters.logged, counters.log_lost, reader.damaged) == (600, 0, 0)
    kept = [answer.output_tokens for answer in answers]
    assert kept == list(range(600 - len(kept), 600))
    assert 0 < len(kept) < 600
    assert 0.8 * 2**20 < most <= 2**20
    assert max(path.stat().st_size for _, path in segments(tmp_path)) <= 2**17
    assert segments(tmp_path)[0][0] > 1


def test_a_clock_that_goes_back_does_not_disorder_the_log(tmp_path: Path) -> None:
    for length, clock_s in ((1, 2e9), (2, 1e9), (3, 1.5e9)):
        log = log_to(tmp_path, clock=lambda clock_s=clock_s: clock_s)
        for step in range(2):
            log.answer(
                Prompt([3], {}), time.monotonic() + step, {**VALUES, "output_tokens": length}
            )
        log.close()
    answers, _ = read_answers(tmp_path)
    assert [answer.output_tokens for answer in answers] == [1, 1, 2, 2, 3, 3]
    times = [answer.values["arrival_s"] for answer in answers]
    assert times == sorted(times)
    assert times[0] == pytest.approx(2e9, abs=5)


def test_several_engines_can_share_a_folder(tmp_path: Path) -> None:
    logs = [log_to(tmp_path) for _ in range(3)]
    for length, log in enumerate(logs, start=1):
        for _ in range(5):
            log.answer(Prompt([3], {}), 0.0, {**VALUES, "output_tokens": length})
    for log in logs:
        log.close()
    answers, reader = read_answers(tmp_path)
    assert sorted(answer.output_tokens for answer in answers) == [1] * 5 + [2] * 5 + [3] * 5
    assert (len(segments(tmp_path)), reader.damaged) == (3, 0)


def test_a_reader_follows_all_engines_that_write_at_once(tmp_path: Path) -> None:
    counters = [Counters(), Counters()]
    logs = [log_to(tmp_path, each) for each in counters]
    reader, seen = LengthLogReader(tmp_path), []
    for block in range(1, 5):
        for length, log in enumerate(logs, start=1):
            for _ in range(5):
                log.answer(Prompt([3], {}), 0.0, {**VALUES, "output_tokens": length})
        for each in counters:
            wait_for(5 * block, each)
        seen += [answer.output_tokens for answer in reader.read_new()]
    for log in logs:
        log.close()
    assert (seen.count(1), seen.count(2), reader.damaged) == (20, 20, 0)


def test_an_engine_whose_segment_made_room_begins_another(tmp_path: Path) -> None:
    counters = Counters()
    log = log_to(tmp_path, counters)
    for length in (1, 2):
        log.answer(Prompt([3], {}), 0.0, {**VALUES, "output_tokens": length})
        wait_for(length, counters)
        if length == 1:
            for _, path in segments(tmp_path):
                path.unlink()  # as a busier engine does
    log.close()
    answers, _ = read_answers(tmp_path)
    assert [answer.output_tokens for answer in answers] == [2]


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    counters = Counters()
    folder = tmp_path / "log"
    log = log_to(folder, counters)
    for length in (1, 2):
        log.answer(Prompt([3], {}), 0.0, {**VALUES, "output_tokens": length})
        wait_for(length, counters)
        if length == 1:
            shutil.rmtree(folder)
    log.close()
    answers, _ = read_answers(folder)
    assert [answer.output_tokens for answer in answers] == [2]


def test_a_flood_is_dropped_and_counted(tmp_path: Path) -> None:
    counters = Counters()
    log = log_to(tmp_path, counters)
    started = time.monotonic()
    for _ in range(20_000):
        log.answer(Prompt([3], {}), 0.0, VALUES)
    assert time.monotonic() - started < 5.0  # it never waits for the disk
    log.close()
    assert counters.log_lost > 0
    assert counters.logged + counters.log_lost == 20_000
    answers, _ = read_answers(tmp_path)
    assert len(answers) == counters.logged


# The limit on a file's size stands for the full disk: a part of a write is taken, then none.
DISK_FULL = """
import json, resource, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from lengthwise.predict.prediction import Prompt
from tests.telemetry.test_length_log_writer import VALUES
from tests.telemetry.test_length_log_writer import log_to
from lengthwise.telemetry import journal
from lengthwise.counters import Counters

journal._RETRY_S = 0.0
folder, counters = Path(sys.argv[1]), Counters()
log = log_to(folder, counters)

def answers(count, length):
    before = counters.logged + counters.log_lost
    for _ in range(count):
        log.answer(Prompt(list(range(3, 60)), {}), 0.0, {**VALUES, "output_tokens": length})
    while counters.logged + counters.log_lost < before + count:
        time.sleep(0.02)

answers(5, 1)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
size = sum(path.stat().st_size for path in folder.glob("lengths-*"))
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, most))
answers(40, 2)
lost = counters.log_lost
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
answers(5, 3)
log.close()
print(json.dumps({"lost": lost, "lost_later": counters.log_lost - lost, "logged": counters.logged}))
"""


def test_a_full_disk_loses_answers_and_nothing_else(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path), str(Path(__file__).parents[2])],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    counted = json.loads(finished.stdout)
    assert counted["lost"] > 0
    assert counted["lost_later"] == 0
    assert counted["lost"] + counted["logged"] == 50
    answers, reader = read_answers(tmp_path)
    lengths = [answer.output_tokens for answer in answers]
    assert lengths[:5] == [1] * 5
    assert lengths[-5:] == [3] * 5
    assert len(lengths) == counted["logged"]
    assert (reader.damaged, reader.unfinished) == (0, False)


def test_a_disk_that_is_full_is_complained_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(journal.logger, "error", lambda line, *rest: said.append(line))
    monkeypatch.setattr(journal, "_RETRY_S", 0.0)
    monkeypatch.setattr(
        length_log_writer, "segment_path", lambda folder, number: Path("/dev/full/x")
    )
    counters = Counters()
    log = log_to(tmp_path, counters)
    for row in range(3):
        log.answer(Prompt([3], {}), 0.0, VALUES)
        wait_for(row + 1, counters)
    log.close()
    assert counters.log_lost == 3
    assert len(said) == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder") as raised:
        log_to(tmp_path / "file" / "log")
    assert "\n" not in str(raised.value)
