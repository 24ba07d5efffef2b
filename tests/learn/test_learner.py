"""The learner: what it accepts, what it takes back, and whose settings file it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.learn.learner import (
    STATE_FILE,
    Learner,
    compare,
    latest_predictor,
    note_server,
    place_predictor,
    read_predictor,
)
from lengthwise.predict.load import load_predictor
from lengthwise.workload.length_log import segments
from tests.support.length_logs import write_segment
from tests.support.logged_traffic import traffic, train_on_log


class Place:
    """A log and a settings file."""

    def __init__(self, folder: Path, predictor: str | None = "none") -> None:
        self.log = folder / "log"
        self.log.mkdir()
        self.settings = folder / "settings.json"
        self.write(predictor)

    def write(self, predictor: str | None) -> None:
        values = {"policy": "ltr", "max_overtakes": 7, "predictor": predictor}
        self.settings.write_text(json.dumps(values))

    def answer(self, count: int, seed: int, **options: Any) -> None:
        prompts, lengths = traffic(count, seed)
        if options.pop("reversed", False):
            # Another kind of traffic: what was long is short now.
            lengths = [max(1, 400 - length) for length in lengths]
        write_segment(self.log, prompts, lengths, **options)

    def answer_as_predicted(self, count: int, seed: int, tau_like: float) -> None:
        """Live answers of what is placed, whose scores are as good as said."""
        _, lengths = traffic(count, seed)
        random = np.random.default_rng(seed)
        noise = np.array(lengths)[random.permutation(count)]
        scores = tau_like * np.array(lengths) + (1 - abs(tau_like)) * noise
        name = Path(read_predictor(self.settings)).name
        self.answer(count, seed, predictor=name, scores=scores.tolist())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_it_begins_without_a_predictor_and_places_the_first(place: Place) -> None:
    learner = Learner(place.log, place.settings, every=200)
    place.answer(150, seed=1)
    learner.step()
    assert learner.state.trained == 0
    assert read_predictor(place.settings) == "none"
    place.answer(150, seed=2)
    learner.step()
    assert (learner.state.trained, learner.state.accepted) == (1, 1)
    placed = Path(read_predictor(place.settings))
    assert placed.parent == place.log.resolve() / "predictors"
    values = json.loads(place.settings.read_text())
    assert (values["policy"], values["max_overtakes"]) == ("ltr", 7)
    # Half of what is new was held out.
    assert load_predictor(str(placed)).metadata.training.rows == 150
    assert learner.state.comparison["rows"] == 150
    assert learner.state.comparison["tau"] > 0.5
    written = json.loads((place.log / STATE_FILE).read_text())
    assert written["placed"] == str(placed)
    assert "placed" in written["said"]
    assert latest_predictor(place.log) == str(placed)


def test_what_is_not_better_is_not_placed(place: Place) -> None:
    place.answer(600, seed=1)
    good = train_on_log(place.log)
    good.save(place.log / "good")
    place.write(str(place.log / "good"))
    learner = Learner(place.log, place.settings, every=200)
    learner.step()
    place.answer(220, seed=5)
    learner.step()
    assert (learner.state.trained, learner.state.accepted, learner.state.refused) == (1, 0, 1)
    assert "not better" in learner.state.said
    assert read_predictor(place.settings) == str((place.log / "good").resolve())
    # And it does not try again before there is something new.
    learner.step()
    assert learner.state.trained == 1


def test_drift_calls_for_training_before_it_is_due(place: Place) -> None:
    place.answer(400, seed=1)
    train_on_log(place.log).save(place.log / "old")
    place.write(str(place.log / "old"))
    learner = Learner(place.log, place.settings, every=5000)
    learner.step()
    place.answer(400, seed=3, reversed=True)
    learner.step()
    # Of all answers and of the new ones alone; only the latter say what is true now.
    assert (learner.state.trained, learner.state.accepted) == (2, 1)
    assert learner.state.comparison["present_tau"] < 0 < learner.state.comparison["tau"]
    assert load_predictor(read_predictor(place.settings)).metadata.training.rows == 200


def test_without_drift_nothing_is_trained_before_it_is_due(place: Place) -> None:
    # What an artifact promises has no interval: this one's is near the truth by its seed. Of the
    # two dozen prompts of this traffic a fifth is held out at a time: others promise too much.
    place.answer(400, seed=3)
    train_on_log(place.log).save(place.log / "old")
    place.write(str(place.log / "old"))
    learner = Learner(place.log, place.settings, every=5000)
    for seed in range(11, 15):
        learner.step()
        place.answer(250, seed=seed)
    assert learner.state.trained == 0


def test_a_log_that_teaches_nothing_is_said_and_survived(place: Place) -> None:
    learner = Learner(place.log, place.settings, every=100)
    write_segment(place.log, ["Same."] * 300, [5] * 300)
    learner.step()
    assert (learner.state.trained, learner.state.refused) == (0, 1)
    assert "nothing to learn" in learner.state.said
    assert "\n" not in learner.state.said


def test_a_broken_promise_is_rolled_back(place: Place) -> None:
    learner = Learner(place.log, place.settings, every=300)
    place.answer(300, seed=1)
    learner.step()
    first = read_predictor(place.settings)
    assert learner.state.accepted == 1
    place.answer_as_predicted(250, 2, 1.0)
    learner.step()
    assert learner.state.rolled_back == 0
    assert learner.state.live_tau is not None
    assert learner.state.live_tau > 0.8
    # Live answers say the opposite of what was promised, and no predictor at all would do better.
    place.answer_as_predicted(250, 3, -0.9)
    learner.step()
    assert learner.state.rolled_back == 1
    assert read_predictor(place.settings) == "none"
    assert "rolled back" in learner.state.said
    assert Path(first).is_dir()
    # What comes next does not take the name that the log knows already.
    place.answer(700, seed=4)
    learner.step()
    if learner.state.accepted == 2:
        assert Path(read_predictor(place.settings)).name != Path(first).name


def test_it_is_not_rolled_back_to_what_is_worse(place: Place) -> None:
    learner = Learner(place.log, place.settings, every=300)
    place.answer(300, seed=1)
    learner.step()
    placed = read_predictor(place.settings)
    # Far below the promise, but better than nothing, which is what was there before.
    place.answer_as_predicted(250, 3, 0.25)
    learner.step()
    assert learner.state.live_tau is not None
    assert learner.state.promise is not None
    assert 0.0 < learner.state.live_tau < learner.state.promise[1]
    assert learner.state.rolled_back == 0
    assert read_predictor(place.settings) == placed


def test_the_users_choice_stands(place: Place) -> None:
    learner = Learner(place.log, place.settings, every=100)
    learner.step()
    place.write("prompt-length")
    place.answer(300, seed=1)
    learner.step()
    assert learner.state.trained == 0
    assert "it stays" in learner.state.said
    assert read_predictor(place.settings) == "prompt-length"
    # Until the user sets it back.
    place.write("none")
    place.answer(60, seed=2)
    learner.step()
    assert learner.state.accepted == 1


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_settings_file_that_is_being_written_is_left_alone(place: Place, text: str) -> None:
    learner = Learner(place.log, place.settings, every=100)
    place.answer(200, seed=1)
    place.settings.write_text(text)
    learner.step()
    assert place.settings.read_text() == text
    assert learner.state.trained == 0
    place.settings.unlink()
    learner.step()
    assert not place.settings.exists()


def test_an_edit_of_the_last_moment_is_not_overwritten(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lengthwise.learn import learner

    real = learner.read_bounded
    edits = ['{"predictor": "none", "policy": "srpt"}', '{"predictor": "declared"}']

    def edit_meanwhile(path: Path, most_bytes: int) -> bytes:
        if edits and list(path.parent.glob("*.part")):
            path.write_text(edits.pop(0))
        return real(path, most_bytes)

    monkeypatch.setattr(learner, "read_bounded", edit_meanwhile)
    assert not place_predictor(place.settings, "none", "p")
    assert json.loads(place.settings.read_text()) == {"predictor": "declared"}
    edits[:] = ['{"predictor": "declared", "policy": "srpt"}']
    assert place_predictor(place.settings, "declared", "p")
    assert json.loads(place.settings.read_text()) == {"predictor": "p", "policy": "srpt"}
    assert [path.name for path in place.settings.parent.iterdir() if path.is_file()] == [
        "settings.json"
    ]


def test_a_link_to_the_settings_stays_one(place: Place, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link.json"
    link.parent.mkdir()
    link.symlink_to(place.settings)
    assert place_predictor(link, "none", "p")
    assert link.is_symlink()
    assert read_predictor(place.settings) == "p"


def test_a_disk_that_refuses_is_left_as_it_was(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str, encoding: str) -> None:
        path.touch()
        raise OSError("no space left on device")

    before = sorted(place.settings.parent.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", refuse)
        with pytest.raises(OSError, match="no space"):
            place_predictor(place.settings, "none", "p")
    assert sorted(place.settings.parent.iterdir()) == before
    assert read_predictor(place.settings) == "none"


def test_a_learner_that_was_killed_goes_on_where_it_was(place: Place) -> None:
    learner = Learner(place.log, place.settings, every=200)
    place.answer(300, seed=1)
    learner.step()
    assert learner.state.accepted == 1
    again = Learner(place.log, place.settings, every=200, restarts=1)
    again.step()
    assert again.state.trained == 1
    assert again.state.restarts == 1
    assert again.state.placed == read_predictor(place.settings)
    assert list(again.state.promise or ()) == list(learner.state.promise or ())
    # It also remembers that the user has chosen since.
    place.write("declared")
    third = Learner(place.log, place.settings, every=200, restarts=2)
    place.answer(300, seed=2)
    third.step()
    assert read_predictor(place.settings) == "declared"


class _KilledError(BaseException):
    """Where the process would have ended."""


@pytest.mark.parametrize("is_placed", [False, True])
@pytest.mark.parametrize("what", ["accepted", "rolled_back"])
def test_a_learner_killed_while_it_places_knows_its_own_predictor(
    place: Place, monkeypatch: pytest.MonkeyPatch, what: str, is_placed: bool
) -> None:
    """Just before, and just after, the settings file is exchanged."""
    from lengthwise.learn import learner as module

    learner = Learner(place.log, place.settings, every=200)
    place.answer(300, seed=1)
    if what == "rolled_back":
        learner.step()
        place.answer_as_predicted(250, 3, -0.9)
    was = read_predictor(place.settings)

    def place_and_die(settings: Path, expected: str, wanted: str) -> bool:
        if is_placed:
            place_predictor(settings, expected, wanted)
        raise _KilledError

    with monkeypatch.context() as patched:
        patched.setattr(module, "place_predictor", place_and_die)
        with pytest.raises(_KilledError):
            learner.step()
    assert (read_predictor(place.settings) != was) == is_placed
    again = Learner(place.log, place.settings, every=10_000, restarts=1)
    again.step()
    assert again.state.placed == read_predictor(place.settings)
    if what == "accepted":
        assert (again.state.accepted, again.state.is_mine) == (is_placed, is_placed)
    else:  # what had not been taken back is now
        assert (again.state.rolled_back, again.state.is_mine) == (1, False)
    assert (again.state.restarts, again.state.ahead) == (1, None)
    assert "it stays" not in again.state.said
    # And it learns on.
    place.answer(400, seed=5)
    third = Learner(place.log, place.settings, every=200, restarts=2)
    third.step()
    assert third.state.trained > again.state.trained


def test_a_server_begins_with_what_was_being_placed_when_all_was_killed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lengthwise.learn import learner as module

    def die(settings: Path, expected: str, wanted: str) -> bool:
        raise _KilledError

    learner = Learner(place.log, place.settings, every=200)
    place.answer(300, seed=1)
    monkeypatch.setattr(module, "place_predictor", die)
    with pytest.raises(_KilledError):
        learner.step()
    latest = latest_predictor(place.log)
    assert latest is not None
    assert Path(latest).parent == place.log.resolve() / "predictors"


def test_another_servers_settings_are_not_taken_for_the_users_choice(place: Place) -> None:
    """Two servers log in one folder; the second learner goes on when the first has ended."""
    first = Learner(place.log, place.settings, every=200)
    place.answer(300, seed=1)
    first.step()
    assert first.state.accepted == 1
    theirs = place.settings.with_name("theirs.json")
    theirs.write_text('{"policy": "ltr", "predictor": "none"}')
    second = Learner(place.log, theirs, every=200, goes_on=True)
    second.step()
    assert "it stays" not in second.state.said
    assert read_predictor(theirs) == second.state.placed
    assert second.state.accepted == 1
    # Of one settings file, it is still known who has changed it.
    third = Learner(place.log, theirs, every=200, goes_on=True)
    third.step()
    assert third.state.placed == second.state.placed
    assert third.state.is_mine


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_log_that_was_removed_hides_no_new_answers(place: Place, restarts: int) -> None:
    """While the learner runs, and between two of them."""
    learner = Learner(place.log, place.settings, every=200)
    place.answer(600, seed=1)
    learner.step()
    assert learner.state.trained == 1
    for _, path in segments(place.log):
        path.unlink()
    if restarts:
        learner = Learner(place.log, place.settings, every=200, restarts=restarts)
    place.answer(150, seed=2, began_s=2e9)
    learner.step()
    assert learner.state.trained == 1
    place.answer(100, seed=3)
    learner.step()
    assert learner.state.trained == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"schema": "lengthwise.learner/9"}',
        '{"schema": "lengthwise.learner/1", "placed": 7}',
        '{"schema": "lengthwise.learner/1", "promise": [0.5]}',
        '{"schema": "lengthwise.learner/1", "trained_until": null}',
    ],
)
def test_a_damaged_state_is_begun_anew(place: Place, text: str) -> None:
    (place.log / STATE_FILE).write_text(text)
    learner = Learner(place.log, place.settings, every=200, restarts=1)
    learner.step()
    assert learner.state.placed == "none"
    assert latest_predictor(place.log) is None


def test_only_the_placed_and_the_last_good_predictor_are_kept(place: Place) -> None:
    learner = Learner(place.log, place.settings, every=200)
    for seed in range(6):
        place.answer(400, seed=seed, reversed=bool(seed % 2))
        learner.step()
    assert learner.state.accepted >= 3
    kept = {str(path) for path in (place.log.resolve() / "predictors").iterdir()}
    assert kept == {learner.state.placed, learner.state.before}


@pytest.mark.parametrize("text", ['{"predictor": "NAMED"}', "{", None])
def test_what_another_server_goes_by_is_kept(
    place: Place, tmp_path: Path, text: str | None
) -> None:
    learner = Learner(place.log, place.settings, every=200)
    other = tmp_path / "other.json"
    for turn in range(4):
        place.answer(250, seed=turn, reversed=turn % 2 == 1)
        learner.step()
        if turn == 0 and text is not None:
            other.write_text(text.replace("NAMED", read_predictor(place.settings)))
        note_server(place.log, other)
    assert learner.state.accepted == 4
    kept = sorted(path.name for path in (place.log / "predictors").iterdir())
    ours = ["p-000003", "p-000004"]
    # Where it cannot be told what the other server's settings name, none is taken away.
    others = {None: [], "{": ["p-000001", "p-000002"]}.get(text, ["p-000001"])
    assert kept == others + ours


def test_the_comparison_is_paired_and_knows_noise_from_gain() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 500, 300)
    noise = random.normal(0, 150, 300)
    present = lengths + noise
    better = lengths + 0.9 * noise
    found = compare(lengths, better, present)
    assert found.is_better
    assert found.tau_low < found.tau < found.tau_high
    # Either's own interval holds the other's tau: only the pairing tells them apart.
    assert found.tau_low < found.present_tau
    assert not compare(lengths, present, present).is_better
    assert not compare(lengths, present, better).is_better
    nothing = np.zeros(300)
    assert compare(lengths, present, nothing).present_tau == 0.0
    assert compare(lengths, present, nothing).is_better
    assert not compare(lengths, nothing, present).is_better
    fair = sum(
        compare(
            lengths, lengths + random.normal(0, 400, 300), lengths + random.normal(0, 400, 300)
        ).is_better
        for _ in range(20)
    )
    assert fair <= 3


@pytest.mark.parametrize("kind", ["endless", "pipe", "large"])
def test_a_settings_file_that_is_something_else_is_left_alone(tmp_path: Path, kind: str) -> None:
    settings = tmp_path / "settings.json"
    if kind == "endless":
        settings.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(settings)
    else:
        settings.write_bytes(b" " * (1 << 21))
    with pytest.raises(ValueError, match=r"^is "):
        read_predictor(settings)
    with pytest.raises(ValueError, match=r"^is "):
        place_predictor(settings, "none", "elsewhere")
    assert list(tmp_path.iterdir()) == [settings]
