"""The prompts of the reference model: twelve families of tasks in varied wording.

What a prompt asks for decides the usual length of its answer: the family, the wish for a short or a
full answer, an asked-for number of parts, and the subject itself. The prompt's own length decides
next to nothing, as with real traffic: long texts are often followed by a question with a one-word
answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lengthwise.errors import InputError
from lengthwise.reference.word_lists import CATEGORIES, SENTENCES, SIZES, TASKS, TOPICS, WORDS


class ReferencePrompt(NamedTuple):
    """One prompt and what its answer is written from (`corpus.answer`)."""

    text: str
    family: str
    subject: str = ""  # what the answer is about
    other: str = ""  # the second thing, in comparisons
    fact: str = ""  # the right answer, where there is one
    parts: int = 0  # the number of parts asked for, 0 when left open
    detail: float = 1.0  # share of the usual length asked for


def fill(template: str, rng: random.Random, **known: str) -> str:
    """Replace each {name} by the value in `known`, or else by a random entry of WORDS[name]."""

    def word(match: re.Match[str]) -> str:
        name = match.group(1)
        return known[name] if name in known else rng.choice(WORDS[name])

    return re.sub(r"\{(\w+)\}", word, template)


def sentences(kind: str, count: int, rng: random.Random, subject: str = "") -> str:
    """`count` sentences of one kind of SENTENCES, the same template never twice in a row."""
    written = []
    last = ""
    for _ in range(count):
        template = rng.choice([t for t in SENTENCES[kind] if t != last])
        last = template
        written.append(fill(template, rng, subject=subject or rng.choice(WORDS["topic"])))
    return " ".join(written)


def _greeting(rng: random.Random) -> ReferencePrompt:
    template = rng.choice(
        (
            "Hello!",
            "Good {season}, my name is {name}.",
            "Hello, how are you?",
            "Thank you for the {thing}.",
            "Hello, I am a {person} from the {place}.",
            "Good {season}! I like the {topic}.",
        )
    )
    return ReferencePrompt(fill(template, rng), "greeting")


def _yes_no(rng: random.Random) -> ReferencePrompt:
    first, second = rng.sample(range(len(SIZES)), 2)
    template, bigger = rng.choice(
        (
            ("Is a {a} bigger than a {b}?", True),
            ("Is a {a} smaller than a {b}?", False),
            ("Would a {a} be bigger than a {b}?", True),
            ("I say that a {a} is bigger than a {b}. Is that right?", True),
        )
    )
    only = rng.random() < 0.3
    text = fill(template, rng, a=SIZES[first], b=SIZES[second]) + only * " Answer yes or no."
    fact = "Yes" if (first > second) == bigger else "No"
    return ReferencePrompt(
        text, "yes_no", SIZES[first], SIZES[second], fact, detail=0.0 if only else 1.0
    )


def _sum(rng: random.Random) -> ReferencePrompt:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    template = rng.choice(
        ("What is {a} plus {b}?", "Add {a} and {b}.", "I have {a} cups and buy {b}. How many?")
    )
    return ReferencePrompt(
        fill(template, rng, a=str(a), b=str(b)), "sum", str(a), str(b), str(a + b)
    )


def _passage(rng: random.Random, thing: str, colour: str) -> str:
    """A text of 3 to 24 sentences that says somewhere what colour the thing is."""
    before = sentences("passage", rng.randint(1, 12), rng)
    after = sentences("passage", rng.randint(1, 11), rng)
    return f"{before} The {thing} was {colour}. {after}"


def _question(rng: random.Random) -> ReferencePrompt:
    thing, colour = rng.choice(WORDS["thing"]), rng.choice(WORDS["colour"])
    ask = rng.choice(
        ("What colour is the {thing}?", "Which colour was the {thing}?", "Is the {thing} red?")
    )
    asked = fill(ask, rng, thing=thing)
    fact = ("Yes" if colour == "red" else "No") if "red" in ask else colour
    return ReferencePrompt(
        f"{_passage(rng, thing, colour)}\n\n{asked}", "question", thing, colour, fact
    )


def _summary(rng: random.Random) -> ReferencePrompt:
    thing, colour = rng.choice(WORDS["thing"]), rng.choice(WORDS["colour"])
    wish, detail = rng.choice(
        (("Sum this up in one line.", 0.4), ("Sum this up.", 1.0), ("What does this say?", 1.4))
    )
    passage = _passage(rng, thing, colour)
    text = rng.choice((f"{wish}\n\n{passage}", f"{passage}\n\n{wish}"))
    return ReferencePrompt(text, "summary", thing, colour, detail=detail)


DETAILS: tuple[tuple[str, float], ...] = (
    # what follows the request, and the share of the usual length that it asks for
    ("", 1.0),
    ("", 1.0),
    (" Keep it short.", 0.45),
    (" Be brief.", 0.5),
    (" Tell me everything.", 1.8),
    (" I want a full answer.", 1.6),
)


def _open_ended(
    family: str, subjects: tuple[str, ...], templates: tuple[str, ...], counted: tuple[str, ...]
) -> Callable[[random.Random], ReferencePrompt]:
    """A family whose answer has parts: their number asked for (`counted`), or left open."""

    def make(rng: random.Random) -> ReferencePrompt:
        subject, other = rng.sample(subjects, 2)
        known = {"subject": subject, "other": other}
        if counted and rng.random() < 0.3:
            parts = rng.randint(2, 12)
            text = fill(rng.choice(counted), rng, parts=str(parts), **known)
            return ReferencePrompt(text, family, subject, other, parts=parts)
        wish, detail = rng.choice(DETAILS)
        text = fill(rng.choice(templates), rng, **known) + wish
        return ReferencePrompt(text, family, subject, other, detail=detail)

    return make


_TOPICS, _TASKS = tuple(TOPICS), tuple(TASKS)

FAMILIES: Mapping[str, tuple[float, Callable[[random.Random], ReferencePrompt]]] = {
    # name: (share of the prompts, maker)
    "greeting": (0.04, _greeting),
    "yes_no": (0.08, _yes_no),
    "sum": (0.03, _sum),
    "question": (0.09, _question),
    "summary": (0.07, _summary),
    "define": (
        0.12,
        _open_ended(
            "define",
            _TOPICS,
            ("What is a {subject}?", "Define the word {subject}.", "What does {subject} mean?"),
            (),
        ),
    ),
    "list": (
        0.14,
        _open_ended(
            "list",
            tuple(CATEGORIES),
            ("Name some {subject}.", "Give me a list of {subject}.", "Which {subject} are there?"),
            ("List {parts} {subject}.", "Name {parts} {subject}.", "Give me {parts} {subject}."),
        ),
    ),
    "steps": (
        0.11,
        _open_ended(
            "steps",
            _TASKS,
            ("How do I {subject}?", "Teach me to {subject}.", "What must I do to {subject}?"),
            ("Teach me to {subject} in {parts} steps.", "Give me {parts} steps to {subject}."),
        ),
    ),
    "letter": (
        0.07,
        _open_ended(
            "letter",
            _TOPICS,
            (
                "Write a letter to my {person} about the {subject}.",
                "Write to {name} about the {subject}.",
            ),
            (),
        ),
    ),
    "poem": (
        0.05,
        _open_ended(
            "poem",
            _TOPICS,
            ("Write a poem about the {subject}.", "Make a song of the {subject}."),
            (),
        ),
    ),
    "story": (
        0.10,
        _open_ended(
            "story",
            CATEGORIES["animals"],
            ("Tell me a story about a {subject}.", "Write a story with a {subject} and a {other}."),
            ("Write a story about a {subject} in {parts} parts.",),
        ),
    ),
    "explain": (
        0.11,
        _open_ended(
            "explain",
            _TOPICS,
            (
                "Explain the {subject} to me.",
                "Why do people {verb} the {subject}?",
                "Compare the {subject} with the {other}.",
                "Write about the {subject} for the {person}.",
            ),
            ("Write {parts} points about the {subject}.", "Give {parts} reasons for the {subject}"),
        ),
    ),
}

OPENINGS: tuple[str, ...] = ("", "", "", "Please help me. ", "I have a question. ", "Hello. ")


def generate_one(rng: random.Random) -> ReferencePrompt:
    """One random prompt: a family by its share, its request, and something said before it."""
    names = list(FAMILIES)
    name = rng.choices(names, [FAMILIES[n][0] for n in names])[0]
    prompt = FAMILIES[name][1](rng)
    opening = rng.choice(OPENINGS)
    if rng.random() < 0.35:  # small talk: makes the prompt longer, never the answer
        opening += sentences("passage", rng.randint(1, 4), rng) + " "
    return prompt._replace(text=opening + prompt.text)


def generate(count: int, seed: int) -> list[ReferencePrompt]:
    """`count` distinct prompts; the same for the same `count` and `seed`, on every machine.

    Prompts for training and for testing a predictor are best taken from one call, so that no
    prompt is in both: two seeds share a few of the short ones.

    Raises:
        InputError: `count` is negative, or more prompts are wanted than the families yield.
    """
    if count < 0:
        raise InputError(f"the number of prompts is {count}: give zero or more")
    rng = random.Random(seed)
    distinct: dict[str, ReferencePrompt] = {}
    for _ in range(20 * count):
        if len(distinct) == count:
            break
        prompt = generate_one(rng)
        distinct.setdefault(prompt.text, prompt)
    if len(distinct) < count:
        raise InputError(f"the families yield no {count} distinct prompts: ask for fewer")
    return list(distinct.values())
