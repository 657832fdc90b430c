"""The words of the generated world: topics, series, and how a title and a text are made of them."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic and the words that belong to it."""

    name: str
    words: tuple[str, ...]


TOPICS = (
    Topic("Jazz", ("saxophone", "trumpet", "swing", "quartet", "blue note", "improvisation", "double bass", "bebop")),
    Topic("Gardening", ("roses", "compost", "greenhouse", "seedlings", "pruning", "herbs", "orchard", "soil")),
    Topic("Astronomy", ("telescope", "galaxy", "comet", "supernova", "planet", "orbit", "nebula", "moonlight")),
    Topic("Cooking", ("sourdough", "saffron", "simmering", "knife skills", "broth", "pastry", "spices", "kitchen")),
    Topic("Cycling", ("bicycle", "gravel road", "peloton", "mountain pass", "sprint", "saddle", "gears", "tailwind")),
    Topic("Chess", ("gambit", "endgame", "grandmaster", "opening", "checkmate", "knight", "tournament", "board")),
    Topic("Sailing", ("regatta", "harbour", "spinnaker", "tide", "lighthouse", "keel", "north wind", "crew")),
    Topic("Pottery", ("clay", "kiln", "glaze", "stoneware", "potter's wheel", "porcelain", "vase", "firing")),
    Topic("Birds", ("heron", "migration", "nest", "songbird", "falcon", "wetland", "feather", "dawn chorus")),
    Topic("Robots", ("servo", "automaton", "sensor", "circuit", "gripper", "machine vision", "assembly", "android")),
    Topic("History", ("empire", "archive", "medieval", "treaty", "excavation", "dynasty", "revolution", "manuscript")),
    Topic("Climbing", ("summit", "granite", "rope", "belay", "ridge", "glacier", "boulder", "base camp")),
)
SERIES_NOUNS = (
    "Letters", "Evenings", "Stories", "Lessons", "Diaries", "Secrets", "Journeys", "Workshops", "Portraits", "Seasons",
    "Encounters", "Notes", "Voices", "Legends", "Mornings", "Questions",
)  # fmt: skip
_OPENINGS = ("A close look at", "Everything about", "An hour of", "A beginner's guide to", "The quiet art of", "Why")
_LINKS = ("meets", "with", "beyond", "and", "without", "after")


def title(topic: int, noun: str, part: int, chance: random.Random) -> str:
    """A title like `Jazz Letters 2: Swing`."""
    return f"{TOPICS[topic].name} {noun} {part + 1}: {chance.choice(TOPICS[topic].words).title()}"


def sentence(topic: int, chance: random.Random) -> str:
    """One sentence of a topic's words."""
    first, second, third = chance.sample(TOPICS[topic].words, 3)
    return f"{chance.choice(_OPENINGS)} {first} {chance.choice(_LINKS)} {second}, for everybody who loves {third}."
