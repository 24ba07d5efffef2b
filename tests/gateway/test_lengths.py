"""What is predicted and learnt while requests pass: what is kept for it, and what is counted."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lengthwise.gateway.configuration import Opener
from lengthwise.gateway.lengths import Lengths
from lengthwise.hints.estimate import PromptPredictor
from lengthwise.hints.question import Question
from lengthwise.predict.prediction import LORA
from lengthwise.reference import model_path
from lengthwise.settings import LengthLogSettings, Settings
from lengthwise.workload.length_log import read_answers
from tests.support.gateways import Client, play_whole, until
from tests.support.small_upstream import SmallUpstream


@contextmanager
def held(lengths: Lengths) -> Iterator[None]:
    """The thread that tokenises does something else."""
    goes_on = threading.Event()
    lengths._thread.submit(goes_on.wait)
    try:
        yield
    finally:
        goes_on.set()


def learning(folder: Path) -> Settings:
    return Settings(policy="fcfs", length_log=LengthLogSettings(folder=str(folder)))


def test_prompts_of_answers_that_teach_nothing_are_not_kept(tmp_path: Path) -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        lengths, counters = client.gateway._lengths, client.gateway._counters
        with held(lengths):
            failed = [client.ask(str(each), hints={"fault": "status:400"}) for each in range(20)]
            assert {said.status for said in await asyncio.gather(*failed)} == {400}
            assert (await client.ask("several", n=2)).status == 200
            upstream.hold.clear()
            leaving = [client.begin(f"leaves-{each}") for each in range(5)]
            await until(lambda: client.gateway.dispatcher.queue.waiting == 3)
            for each in leaving:
                each.cancel()
            await until(lambda: not lengths._live)
            upstream.hold.set()
            assert not lengths._pending
            assert lengths._behind == 0
        assert counters.log_lost == 0

    play_whole(scene, settings=learning(tmp_path))


def test_what_cannot_be_predicted_is_counted_once_and_under_its_own_name() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        counters, queue = client.gateway._counters, client.gateway.dispatcher.queue
        upstream.hold.clear()
        at_once = [client.begin(str(each)) for each in range(2)]  # before anybody predicts
        await until(lambda: upstream.in_flight == 2)
        asked = [
            asyncio.create_task(client.send("POST", path, json={"user": path, **asked}))
            for path, asked in (
                ("/v1/responses", {"input": "a"}),
                ("/v1/chat/completions", {"messages": []}),
                ("/v1/messages", {"prompt": "without a declared length"}),
                ("/invocations", {"prompt": []}),
            )
        ]
        await until(lambda: queue.waiting == 4 and counters.fallbacks == 4)
        upstream.hold.set()
        await asyncio.gather(*at_once, *asked)
        await until(lambda: not client.gateway._lengths._live)
        assert (counters.predictions, counters.fallbacks, counters.unpredicted) == (0, 4, 2)

    play_whole(scene)


@pytest.mark.parametrize("policy", ["fcfs", "sjf"])
def test_nothing_that_was_read_of_a_body_is_kept_while_it_waits(policy: str) -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        upstream.hold.clear()
        asked = [client.begin(str(each), model=f"kept-{policy}") for each in range(8)]
        await until(lambda: client.gateway.dispatcher.queue.waiting == 6)
        await until(lambda: not client.gateway._lengths._pending)
        await until(
            lambda: (
                not any(
                    type(each) is Question and each.hints.get(LORA) == f"kept-{policy}"
                    for each in gc.get_objects()
                )
            )
        )
        upstream.hold.set()
        assert {(await each).status for each in asked} == {200}

    play_whole(scene, policy=policy)


def test_prompts_are_logged_in_the_words_of_whichever_tokenizer_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, log = tmp_path / "tokenizer", tmp_path / "log"
    folder.mkdir()
    spelled = json.loads((model_path() / "tokenizer.json").read_text())
    spelled["model"]["merges"] = []  # letter by letter, and with other ids
    letters = [token for token in spelled["model"]["vocab"] if len(token) == 1]
    spelled["model"]["vocab"] = {letter: 300 - each for each, letter in enumerate(letters)}
    (folder / "tokenizer.json").write_text(json.dumps(spelled))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')

    def other(opener: Opener, spec: str | None) -> PromptPredictor | None:
        return None if spec is None else PromptPredictor(spec, str(folder))

    monkeypatch.setattr(Opener, "_load", other)
    kept = LengthLogSettings(folder=str(log), text=True)

    async def scene(client: Client, upstream: SmallUpstream) -> None:
        gateway, lengths = client.gateway, client.gateway._lengths
        opener = Opener(None, "small", 2, gateway._counters)

        async def change(settings: Settings) -> None:
            gateway.take_up(await asyncio.to_thread(opener.open, settings))

        await change(learning := Settings(policy="fcfs", length_log=kept))
        await client.ask("early")
        await until(lambda: gateway._counters.logged == 1)
        upstream.hold.clear()
        late = client.begin("late")  # rendered by the first tokenizer, and ends with the second
        await until(lambda: any(each.prompt is not None for each in lengths._live.values()))
        await change(learning.model_copy(update={"policy": "sjf", "predictor": "declared"}))
        upstream.hold.set()
        await late
        await client.ask("next")
        await until(lambda: gateway._counters.logged + gateway._counters.log_lost == 3)
        opener.close()

    play_whole(scene)
    answers, _ = read_answers(log)
    assert len(answers) >= 2
    assert {answer.values["text"] for answer in answers} == {"Say 3 words."}
    assert len({answer.header["tokenizer"] for answer in answers}) == 2


def test_what_is_kept_to_be_learnt_from_is_bounded_and_the_rest_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 1000
    monkeypatch.setattr("lengthwise.gateway.lengths.MOST_BEHIND", bound)
    lost = 0

    async def scene(client: Client, upstream: SmallUpstream) -> None:
        nonlocal lost
        lengths = client.gateway._lengths
        with held(lengths):
            for each in range(20):
                assert (await client.ask(str(each))).status == 200
                assert lengths._behind <= bound
            lost = client.gateway._counters.log_lost
            assert 0 < len(lengths._pending) < 20
        await until(lambda: not lengths._pending and lengths._behind == 0)

    play_whole(scene, settings=learning(tmp_path))
    answers, _ = read_answers(tmp_path)
    assert lost > 0
    assert len(answers) + lost == 20
