"""Word lists of the reference corpus: few words, used often, so that a small model learns them all.

Every noun starts with a consonant, which makes "a" right everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

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
