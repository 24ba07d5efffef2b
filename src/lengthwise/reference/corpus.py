"""The answers of the reference corpus: prompt -> text whose length is partly left to chance.

As answers of real models do, the longer ones open with a plan ("6 parts:") and then keep to it,
and to the style of their first part: all parts have as many sentences. How large the plan is and
which style it gets depends on the prompt and on chance, so two answers to one prompt differ. Short
answers, letters and poems have no plan and simply stop.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from lengthwise.reference.prompts import (
    CATEGORIES,
    SIZES,
    TASKS,
    TOPICS,
    ReferencePrompt,
    fill,
    generate_one,
    sentences,
)

MOST_PARTS = 14


class Exchange(NamedTuple):
    """A prompt and one of its possible answers."""

    prompt: ReferencePrompt
    answer: str


def draw_parts(prompt: ReferencePrompt, usual: float, rng: random.Random) -> int:
    """The number of parts: as asked for, or log-normal about the usual number for this prompt."""
    if prompt.parts:
        return prompt.parts
    share = TOPICS.get(prompt.subject, TASKS.get(prompt.subject, 1.0))
    drawn = usual * share * prompt.detail * rng.lognormvariate(0.0, 0.5)
    return min(MOST_PARTS, max(1, round(drawn)))


def numbered(plan: str, parts: list[str]) -> str:
    """The plan with its number of parts, then the parts, each on a line with its number."""
    lines = [f"{index}. {part}" for index, part in enumerate(parts, start=1)]
    return "\n".join([f"{len(parts)} {plan}:", *lines])


def _greeting(prompt: ReferencePrompt, rng: random.Random) -> str:
    return rng.choice(
        ("Hello!", "Hello! How can I help you?", "Good to see you.", "You are welcome.")
    )


def _yes_no(prompt: ReferencePrompt, rng: random.Random) -> str:
    if not prompt.detail:
        return prompt.fact
    if rng.random() < 0.4:
        return f"{prompt.fact}."
    first_is_bigger = SIZES.index(prompt.subject) > SIZES.index(prompt.other)
    comparison = "bigger" if first_is_bigger else "smaller"
    reply = f"{prompt.fact}, a {prompt.subject} is {comparison} than a {prompt.other}."
    if rng.random() < 0.3:
        reply += " " + sentences("about", 1, rng, prompt.subject)
    return reply


def _sum(prompt: ReferencePrompt, rng: random.Random) -> str:
    return rng.choice(
        (
            prompt.fact,
            f"It is {prompt.fact}.",
            f"{prompt.subject} plus {prompt.other} is {prompt.fact}.",
        )
    )


def _question(prompt: ReferencePrompt, rng: random.Random) -> str:
    sentence = f"The {prompt.subject} was {prompt.other}."
    if prompt.fact in ("Yes", "No"):
        return rng.choice((f"{prompt.fact}.", f"{prompt.fact}. {sentence}"))
    return rng.choice((prompt.fact, sentence, f"It was {prompt.fact}."))


def _summary(prompt: ReferencePrompt, rng: random.Random) -> str:
    extra = min(4, int(prompt.detail * rng.expovariate(0.7)))
    reply = f"It is about a {prompt.other} {prompt.subject}."
    return reply if not extra else f"{reply} {sentences('passage', extra, rng)}"


def _define(prompt: ReferencePrompt, rng: random.Random) -> str:
    count = min(8, draw_parts(prompt, 3.0, rng))
    return sentences("about", count, rng, prompt.subject)


def _list(prompt: ReferencePrompt, rng: random.Random) -> str:
    items = CATEGORIES[prompt.subject]
    count = min(len(items), draw_parts(prompt, 7.0, rng))
    chosen = rng.sample(items, count)
    if rng.random() < 0.25:  # with a remark to each
        chosen = [f"{item}: " + sentences("about", 1, rng, item) for item in chosen]
    return numbered(prompt.subject, chosen)


def _steps(prompt: ReferencePrompt, rng: random.Random) -> str:
    count = draw_parts(prompt, 7.0, rng)
    each = rng.choice((1, 2))
    steps = [sentences("step", each, rng) for _ in range(count)]
    closing = rng.choice(("", "", f"\nNow you can {prompt.subject}."))
    return numbered("steps", steps) + closing


def _letter(prompt: ReferencePrompt, rng: random.Random) -> str:
    body = sentences("letter", draw_parts(prompt, 7.0, rng), rng, prompt.subject)
    return fill("Dear {person},\n", rng) + body + fill("\nYours, {name}", rng)


def _poem(prompt: ReferencePrompt, rng: random.Random) -> str:
    verses = []
    for _ in range(min(6, draw_parts(prompt, 2.5, rng))):
        lines = sentences("verse", 4, rng, prompt.subject)
        verses.append(lines.replace(", ", ",\n").rstrip(",") + ".")
    return "\n\n".join(verses)


def _story(prompt: ReferencePrompt, rng: random.Random) -> str:
    count = draw_parts(prompt, 7.0, rng)
    each = rng.choice((1, 1, 2, 3))
    parts = [sentences("story", each, rng, prompt.subject) for _ in range(count)]
    return numbered("parts", parts) + rng.choice(("", "\nThe end."))


def _explain(prompt: ReferencePrompt, rng: random.Random) -> str:
    count = draw_parts(prompt, 7.0, rng)
    each = rng.choice((1, 1, 2, 3))
    parts = [sentences("about", each, rng, prompt.subject) for _ in range(count)]
    return numbered("points", parts)


WRITERS: Mapping[str, Callable[[ReferencePrompt, random.Random], str]] = {
    "greeting": _greeting,
    "yes_no": _yes_no,
    "sum": _sum,
    "question": _question,
    "summary": _summary,
    "define": _define,
    "list": _list,
    "steps": _steps,
    "letter": _letter,
    "poem": _poem,
    "story": _story,
    "explain": _explain,
}


def answer(prompt: ReferencePrompt, rng: random.Random) -> str:
    """One of the possible answers to a prompt."""
    return WRITERS[prompt.family](prompt, rng)


def exchanges(count: int, seed: int) -> Iterator[Exchange]:
    """`count` prompts, repeats included, each with one answer; the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        prompt = generate_one(rng)
        yield Exchange(prompt, answer(prompt, rng))
