"""The prompts of the reference model: twelve families of tasks in varied wording.

The word lists of the whole corpus are here, too: few words, used often, so that a small model
learns them all. Every noun starts with a consonant, which makes "a" right everywhere.

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

TOPICS: Mapping[str, float] = {
    # what people ask about, with the share of the usual number of parts that its answers have:
    # prompts alike in form still differ in length, which a predictor has to learn word by word
    "sea": 1.6, "forest": 1.5, "moon": 1.4, "storm": 1.35, "river": 1.3, "mountain": 1.3,
    "village": 1.25, "garden": 1.2, "market": 1.15, "desert": 1.15, "school": 1.1, "winter": 1.1,
    "farm": 1.0, "bridge": 1.0, "train": 1.0, "boat": 0.95, "horse": 0.95, "bread": 0.9,
    "music": 0.9, "snow": 0.85, "rain": 0.8, "wolf": 0.8, "tree": 0.75, "clock": 0.7,
    "lamp": 0.65, "soup": 0.65, "road": 0.6, "map": 0.55, "cup": 0.5, "spoon": 0.45,
}  # fmt: skip

TASKS: Mapping[str, float] = {
    # what people want to do, with the same kind of share
    "build a boat": 1.6, "keep a horse": 1.45, "plant a garden": 1.35, "build a bridge": 1.3,
    "train a dog": 1.25, "bake bread": 1.15, "fix a clock": 1.1, "learn a song": 1.05,
    "draw a map": 1.0, "cook soup": 0.95, "plant a tree": 0.9, "sell fruit": 0.85,
    "paint a door": 0.8, "write a letter": 0.75, "clean a lamp": 0.65, "make tea": 0.55,
    "wash a cup": 0.5, "read a map": 0.7,
}  # fmt: skip

CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "colours": ("red", "blue", "green", "black", "white", "brown", "pink", "grey", "gold",
                "silver", "purple", "yellow", "violet", "cream"),
    "animals": ("dog", "cat", "horse", "wolf", "bear", "sheep", "fish", "bird", "goat", "duck",
                "mouse", "rabbit", "fox", "hen"),
    "foods": ("bread", "soup", "rice", "cheese", "fruit", "cake", "milk", "honey", "salt",
              "beans", "butter", "corn", "tea", "fish"),
    "tools": ("hammer", "rope", "saw", "knife", "needle", "brush", "ladder", "spoon", "lamp",
              "bucket", "map", "nail", "wheel", "cup"),
    "places": ("forest", "river", "market", "school", "farm", "garden", "village", "bridge",
               "road", "hill", "mountain", "sea", "town", "house"),
}  # fmt: skip

SIZES: tuple[str, ...] = (
    # smallest first: decides which of two things is bigger
    "bee", "nail", "mouse", "spoon", "cup", "bird", "lamp", "rabbit", "cat", "fox", "dog",
    "goat", "wolf", "bear", "horse", "boat", "house", "bridge", "forest", "mountain",
)  # fmt: skip

WORDS: Mapping[str, tuple[str, ...]] = {
    # fill {name} in the sentence templates
    "adjective": ("plain", "small", "great", "quiet", "warm", "cold", "bright", "dark", "soft",
                  "strong", "slow", "new", "good", "hard", "long", "clean"),
    "animal": CATEGORIES["animals"],
    "colour": CATEGORIES["colours"][:8],
    "name": ("Mara", "Tom", "Rosa", "Ben"),
    "person": ("friend", "teacher", "mother", "brother", "doctor", "baker"),
    "place": CATEGORIES["places"],
    "season": ("spring", "summer", "winter", "morning", "night"),
    "thing": ("lamp", "boat", "map", "cup", "clock", "door", "rope", "book", "box", "coat"),
    "topic": tuple(TOPICS),
    "verb": ("see", "find", "like", "know", "need", "love", "visit", "remember"),
}  # fmt: skip

SENTENCES: Mapping[str, tuple[str, ...]] = {
    "about": (
        "The {subject} is {adjective} in the {season}.",
        "Many people {verb} the {subject} because it is {adjective}.",
        "You can {verb} the {subject} near the {place}.",
        "In the {season} the {subject} is {adjective} and {adjective}.",
        "Some say that the {subject} is as {adjective} as a {thing}.",
        "A {person} may {verb} the {subject} more than the {place}.",
        "Without the {subject} the {place} would be {adjective}.",
        "It is {adjective} to {verb} the {subject}.",
        "People in the {place} {verb} it too.",
        "This is why the {subject} is {adjective}.",
    ),
    "step": (
        "Take the {thing} and put it near the {thing}.",
        "Wait until it is {adjective} and {adjective}.",
        "Clean the {thing} with a {adjective} brush.",
        "Turn the {thing} until it is {adjective}.",
        "Ask a {person} for a {adjective} {thing}.",
        "Put the {thing} in a {adjective} place.",
        "Look at the {thing} again in the {season}.",
        "Keep the {thing} {adjective}.",
        "Go to the {place} and find a {adjective} {thing}.",
    ),
    "story": (
        "{name} went to the {place} with the {subject}.",
        "There was a {adjective} {thing} in the {place}.",
        '"We must find the {thing}," said {name}.',
        "The {subject} was {adjective} but the {place} was {adjective}.",
        "In the {season} they came back to the {place}.",
        "{name} gave the {thing} to a {adjective} {person}.",
        '"I know the {subject}," said the {person}.',
        "Nobody could {verb} the {adjective} {thing}.",
        "The {animal} was {adjective} and {name} was happy.",
    ),
    "letter": (
        "I think about the {subject} in the {season}.",
        "We went to the {place} and it was {adjective}.",
        "Your {person} gave me a {adjective} {thing}.",
        "Do you still {verb} the {subject}?",
        "The {place} is {adjective} now.",
        "Please bring the {adjective} {thing} with you.",
        "I hope that the {subject} is {adjective}.",
    ),
    "verse": (
        "The {subject} is {adjective},",
        "the {place} is {adjective},",
        "a {adjective} {thing} in the {season},",
        "and {name} will {verb} the {subject},",
        "so {adjective}, so {adjective},",
    ),
    "passage": (
        "The {person} went to the {place} in the {season}.",
        "It was a {adjective} {season}.",
        "There was a {animal} near the {place}.",
        "{name} had a {adjective} {thing}.",
        "The {place} was {adjective} and {adjective}.",
        "A {person} can {verb} the {topic}.",
    ),
}


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
