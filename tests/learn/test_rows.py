"""Training from a length log: the same predictor as from the prompts themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.load import load_predictor
from lengthwise.predict.prediction import Prompt
from lengthwise.predict.train import teaching, train, training_rows
from lengthwise.workload.dataset import Dataset
from lengthwise.workload.length_log import decode_line, encode_line, read_answers, segments
from tests.support.command_line import Run
from tests.support.length_logs import REFERENCE, write_segment
from tests.support.logged_traffic import traffic, train_on_log


def test_a_log_gives_the_weights_that_the_text_gives(tmp_path: Path) -> None:
    prompts, lengths = traffic(200)
    write_segment(tmp_path, prompts[:120], lengths[:120])
    write_segment(tmp_path, prompts[120:], lengths[120:])
    table = Dataset("t", prompts, np.array(lengths), None, np.arange(1, 201), [])
    from_text, from_log = train(table, REFERENCE, Recipe(seed=3)), train_on_log(tmp_path, seed=3)
    for ours, theirs in zip(
        [*from_log.parameters.model, from_log.parameters.calibration],
        [*from_text.parameters.model, from_text.parameters.calibration],
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert from_log.metadata.held_out == from_text.metadata.held_out
    assert from_log.metadata.tokenizer_fingerprint == REFERENCE.fingerprint
    from_log.save(tmp_path / "p")
    loaded = load_predictor(str(tmp_path / "p"), tokenizer="reference")
    prompt = Prompt(REFERENCE.encode_chat("Write an essay about tea"), {})
    assert loaded.predict(prompt) == from_text.predict(prompt)


def test_answers_that_were_cut_low_or_given_up_teach_nothing(tmp_path: Path) -> None:
    prompts, lengths = traffic(100)
    write_segment(tmp_path, prompts, lengths)
    high = int(np.quantile(lengths, 0.95))
    write_segment(tmp_path, prompts[:3], [5, high, high], finished="length")
    write_segment(tmp_path, prompts[:2], [5, 5000], finished="abort")
    answers, _ = read_answers(tmp_path)
    kept = teaching(answers)
    assert len(kept) == 102
    assert [answer.output_tokens for answer in kept[100:]] == [high, high]
    rows = training_rows(tmp_path, answers, damaged=4)
    assert len(rows.dataset.lengths) == 102
    assert len(rows.dataset.rejected) == 3 + 4


def test_another_tokenizers_answers_are_left_out(tmp_path: Path) -> None:
    prompts, lengths = traffic(60)
    old = write_segment(tmp_path, prompts, lengths)
    header, *lines = old.read_bytes().splitlines(keepends=True)
    changed = decode_line(header)
    assert changed is not None
    old.write_bytes(b"".join([encode_line({**changed, "tokens": "0" * 64}), *lines]))
    write_segment(tmp_path, prompts[:40], lengths[:40])
    rows = training_rows(tmp_path, read_answers(tmp_path)[0])
    assert len(rows.dataset.lengths) == 40


@pytest.mark.parametrize("fault", ["missing", "cut", "another"])
def test_tokens_that_are_damaged_are_one_line(tmp_path: Path, fault: str) -> None:
    prompts, lengths = traffic(40)
    write_segment(tmp_path, prompts, lengths)
    (tokens,) = tmp_path.glob("tokens-*")
    data = tokens.read_bytes()
    if fault == "missing":
        tokens.unlink()
    else:
        place = len(data) // 2
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        tokens.write_bytes(data[:place] if fault == "cut" else changed)
    with pytest.raises(InputError, match="tokens-") as raised:
        train_on_log(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("lengths", "finished", "message"),
    [
        ([5, 6, 7], "stop", "3 usable rows"),
        ([5] * 60, "stop", "all answers have 5 tokens"),
        (list(range(60)), "length", "no answer ended by itself"),
    ],
)
def test_a_log_that_teaches_nothing_is_one_line(
    tmp_path: Path, run: Run, lengths: list[int], finished: str, message: str
) -> None:
    log = tmp_path / "log"
    write_segment(log, traffic(len(lengths))[0], lengths, finished=finished)
    done = run("train", "--from-log", str(log), "--out", str(tmp_path / "p"))
    assert done.code == 2
    assert message in done.err.strip().splitlines()[-1]
    assert not (tmp_path / "p").exists()


def test_train_from_log_says_what_it_left_out(tmp_path: Path, run: Run) -> None:
    log = tmp_path / "log"
    prompts, lengths = traffic(80)
    write_segment(log, prompts, lengths)
    write_segment(log, prompts[:5], lengths[:5], finished="abort")
    with segments(log)[-1][1].open("ab") as file:
        file.write(b'{"cut')
    done = run("train", "--from-log", str(log), "--out", str(tmp_path / "p"), "--json")
    assert done.code == 0, done.err
    card = json.loads(done.out)
    assert card["training"]["rows"] == 80
    assert card["training"]["rejected_rows"] == 6
    assert card["model"] == "a-model"
    assert "1 answers: damaged" in done.err
    # Either source, not both, not none.
    for wrong in ([], [str(log / "x.csv"), "--from-log", str(log)]):
        done = run("train", *wrong, "--out", str(tmp_path / "q"))
        assert done.code == 2
        assert "--from-log" in done.err
