"""Scenes of drawn shapes, and which captions are true of them: all that the sketch model knows.

A scene is one thing, a group of two to four equal things, or two things in a relation, on a background. `Scene` holds
what is there, `Statement` what a caption claims, and `Statement.is_true_of` tells whether a scene fulfils it: so the
images that a sentence should find are known without labelling.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from random import Random

Shape = Literal["circle", "square", "triangle", "star", "cross", "heart", "ring"]
Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "black", "white"]
Size = Literal["small", "large"]
Relation = Literal["left of", "above", "inside"]  # of the first thing to the second
Background = Literal["white", "grey", "black", "pink", "beige"]

SHAPES: tuple[Shape, ...] = get_args(Shape)
COLOURS: tuple[Colour, ...] = get_args(Colour)
SIZES: tuple[Size, ...] = get_args(Size)
RELATIONS: tuple[Relation, ...] = get_args(Relation)
BACKGROUNDS: tuple[Background, ...] = get_args(Background)
COUNTS = (1, 2, 3, 4)
INSIDE: tuple[Size, Size] = ("small", "large")  # of the inner and the outer thing: no others fit
# Pairs that training never draws, two colours of each shape: a model that finds them must know colour and shape apart.
UNSEEN: frozenset[tuple[Colour, Shape]] = frozenset(
    (COLOURS[(number + step) % len(COLOURS)], shape) for number, shape in enumerate(SHAPES) for step in (0, 3)
)

_MAX_REFUSED = 2_000  # scenes in a row; as long as any are left it is a few dozen


@dataclass(frozen=True)
class Thing:
    """A shape of a colour and a size."""

    shape: Shape
    colour: Colour
    size: Size | None = None  # None in a group, whose things have none


@dataclass(frozen=True)
class Scene:
    """One thing, a group or a pair, on a background."""

    first: Thing
    background: Background
    count: int = 1  # of the first thing; 1 if there is a second
    relation: Relation | None = None
    second: Thing | None = None

    @property
    def things(self) -> tuple[Thing, ...]:
        """The one or two different things."""
        return (self.first,) if self.second is None else (self.first, self.second)


@dataclass(frozen=True)
class Claim:
    """What a caption says about a thing; what it leaves out is None."""

    shape: Shape | None
    colour: Colour | None
    size: Size | None = None

    def fits(self, thing: Thing) -> bool:
        """Whether a thing has all that is claimed."""
        return (
            self.shape in (None, thing.shape)
            and self.colour in (None, thing.colour)
            and self.size in (None, thing.size)
        )


@dataclass(frozen=True)
class Statement:
    """What a caption says about a scene. Counts are exact: of three stars, "two stars" is not true."""

    first: Claim
    count: int = 1
    relation: Relation | None = None  # None with a second thing: only that both are there
    second: Claim | None = None
    background: Background | None = None

    def is_true_of(self, scene: Scene) -> bool:
        """Whether a scene fulfils all of the statement."""
        if self.background not in (None, scene.background):
            return False
        if self.second is None:
            counts = (scene.count, 1)
            pairs = zip(scene.things, counts, strict=False)
            return any(self.count == count and self.first.fits(thing) for thing, count in pairs)
        if scene.second is None or self.relation not in (None, scene.relation):
            return False
        in_order = self.first.fits(scene.first) and self.second.fits(scene.second)
        swapped = self.relation is None and self.first.fits(scene.second) and self.second.fits(scene.first)
        return in_order or swapped


def compose(rng: Random, *, unseen: bool = False) -> Scene:
    """Make a random scene of things that training draws, or with `unseen` only of those that it never draws."""
    background = rng.choice(BACKGROUNDS)
    kind = rng.choices(("one", "group", *RELATIONS), weights=(6, 4, 4, 4, 4))[0]
    if kind == "one":
        return Scene(_compose_thing(rng, background, unseen, rng.choice(SIZES)), background)
    if kind == "group":
        return Scene(_compose_thing(rng, background, unseen, None), background, count=rng.choice(COUNTS[1:]))
    relation: Relation = kind  # pyright: ignore[reportAssignmentType]  the two other kinds have returned
    while True:
        sizes: tuple[Size, Size] = (rng.choice(SIZES), rng.choice(SIZES)) if relation != "inside" else INSIDE
        first, second = (_compose_thing(rng, background, unseen, size) for size in sizes)
        scene = Scene(first, background, relation=relation, second=second)
        if _is_allowed(scene):
            return scene


def _is_allowed(scene: Scene) -> bool:
    """Refuse two equal things, which would be a group, and one inside another of its colour, which nobody would see."""
    first, second = scene.first, scene.second
    if second is None:
        return True
    if scene.relation == "inside":
        return first.colour != second.colour
    return (first.shape, first.colour) != (second.shape, second.colour)


def _compose_thing(rng: Random, background: Background, unseen: bool, size: Size | None) -> Thing:
    while True:
        colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        if colour != background and ((colour, shape) in UNSEEN) == unseen:
            return Thing(shape, colour, size)


def make_twin(rng: Random, scene: Scene) -> Scene:
    """Return another scene that training draws and that differs from this one in one respect only."""
    while True:
        which = rng.choice(("shape", "shape", "colour", "size", "count", "relation", "background"))
        other = _change(rng, scene, which)
        if other == scene or any(thing.colour == other.background for thing in other.things):
            continue
        if any((thing.colour, thing.shape) in UNSEEN for thing in other.things):
            continue
        if _is_allowed(other):
            return other


def replace_shape(rng: Random, scene: Scene) -> Scene:
    """Return the scene with one of its shapes replaced, no matter whether training draws the result."""
    while True:
        other = _change(rng, scene, "shape")
        if other != scene and _is_allowed(other):
            return other


def _change(rng: Random, scene: Scene, which: str) -> Scene:
    """Return the scene with one respect chosen anew, or unchanged if the scene does not have it."""
    if which == "background":
        return replace(scene, background=rng.choice(BACKGROUNDS))
    if which == "count" and scene.count > 1:
        return replace(scene, count=rng.choice(COUNTS[1:]))
    if which == "relation" and scene.second is not None:
        if scene.relation == "inside":
            inner, outer = INSIDE
            return replace(scene, first=replace(scene.second, size=inner), second=replace(scene.first, size=outer))
        if rng.random() < 0.5:
            return replace(scene, first=scene.second, second=scene.first)
        return replace(scene, relation="above" if scene.relation == "left of" else "left of")
    choices = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}.get(which)
    if choices is None or (which == "size" and (scene.first.size is None or scene.relation == "inside")):
        return scene
    change = {which: rng.choice(choices)}
    if scene.second is not None and rng.random() < 0.5:
        return replace(scene, second=replace(scene.second, **change))
    return replace(scene, first=replace(scene.first, **change))


# Synonyms, each listed as often as it is to be drawn; the first is the name used in `Literal`s above.
_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "cross", "plus sign"),
    "heart": ("heart",),
    "ring": ("ring", "ring", "hoop"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "purple": ("purple", "purple", "violet"),
    "grey": ("grey", "gray"),
}
_NUMBERS: dict[int, tuple[str, ...]] = {2: ("two", "2", "a pair of"), 3: ("three", "3"), 4: ("four", "4")}
_PLURALS = {"cross": "crosses"}
_ANY_SHAPE = ("shape", "thing", "object")
# How two things are joined, beginning with the first, or (reversed) with the second.
_JOINS: dict[Relation | None, tuple[str, ...]] = {
    "left of": ("{0} left of {1}", "{0} to the left of {1}", "{0} on the left of {1}"),
    "above": ("{0} above {1}", "{0} over {1}", "{0} on top of {1}"),
    "inside": ("{0} inside {1}", "{0} in {1}", "{0} within {1}"),
    None: ("{0} and {1}", "{0} and {1}", "{0} with {1}"),
}
_REVERSED_JOINS: dict[Relation | None, tuple[str, ...]] = {
    "left of": ("{1} right of {0}", "{1} to the right of {0}", "{1} on the right of {0}"),
    "above": ("{1} below {0}", "{1} under {0}", "{1} beneath {0}"),
    "inside": ("{1} around {0}", "{1} containing {0}", "{1} with {0} inside it"),
    None: ("{1} and {0}", "{1} and {0}", "{1} with {0}"),
}
_OPENINGS = (
    *("{}", "{}", "{}", "{}", "a photo of {}", "a picture of {}", "a drawing of {}", "an image of {}"),
    *("there is {}", "this is {}", "{}.", "a photo of {}.", "a picture of {}."),
)
_SINGULAR_OPENINGS = ("there is {}", "this is {}")
_ON_BACKGROUND = ("on a {} background", "on {}", "in front of a {} background", "with a {} background")


def list_words() -> frozenset[str]:
    """Return the words of all captions, which are all that the sketch model has seen."""
    tables = (*_WORDS.values(), *_NUMBERS.values(), *_JOINS.values(), *_REVERSED_JOINS.values(), _OPENINGS)
    phrases = [*(phrase for table in tables for phrase in table), *_ANY_SHAPE, *_ON_BACKGROUND, *SIZES, *BACKGROUNDS]
    words = {word for phrase in phrases for word in re.findall(r"[a-z0-9]+", phrase)} | {
        *SHAPES,
        *COLOURS,
        "a",
        "an",
        "the",
    }
    return frozenset(words | {_plural(word) for word in words})


def claim(rng: Random, scene: Scene, *, full: bool = False) -> Statement:
    """Choose what a caption says: with `full` every shape, colour, count and relation, otherwise often less."""

    def claim_thing(thing: Thing) -> Claim:
        part = 1.0 if full else rng.random()
        size = thing.size if rng.random() < 0.4 else None
        # One time in ten each, so that there are captions of a shape alone and of a colour alone.
        return Claim(None if part < 0.1 else thing.shape, None if 0.1 <= part < 0.2 else thing.colour, size)

    background = scene.background if rng.random() < 0.4 else None
    if scene.second is None:
        return Statement(claim_thing(scene.first), scene.count, background=background)
    if not full and rng.random() < 0.1:
        return Statement(claim_thing(rng.choice((scene.first, scene.second))), background=background)
    relation = None if not full and rng.random() < 0.1 else scene.relation
    return Statement(
        claim_thing(scene.first), relation=relation, second=claim_thing(scene.second), background=background
    )


def say(rng: Random, statement: Statement) -> str:
    """Put a statement into a sentence, in one of many wordings."""
    words = _name(rng, statement.first, statement.count)
    if statement.second is not None:
        other = _name(rng, statement.second)
        joins = _JOINS if rng.random() < 0.5 else _REVERSED_JOINS
        words = rng.choice(joins[statement.relation]).format(words, other)
    if statement.background is not None:
        words += " " + rng.choice(_ON_BACKGROUND).format(_word(rng, statement.background))
    opening = rng.choice(_OPENINGS)
    return ("{}" if statement.count > 1 and opening in _SINGULAR_OPENINGS else opening).format(words)


def caption(rng: Random, scene: Scene) -> str:
    """Write a sentence that says all about a scene, except that it may leave out sizes and background."""
    return say(rng, claim(rng, scene, full=True))


def describe(scene: Scene) -> str:
    """Describe a scene in plain words, the same ones each time; without sizes and background."""
    first, second = f"{scene.first.colour} {scene.first.shape}", scene.second
    if second is not None:
        return f"{first} {scene.relation} {second.colour} {second.shape}"
    return first if scene.count == 1 else f"{scene.count} {scene.first.colour} {_plural(scene.first.shape)}"


def _name(rng: Random, claimed: Claim, count: int = 1) -> str:
    noun = rng.choice(_ANY_SHAPE) if claimed.shape is None else _word(rng, claimed.shape)
    adjectives = [_word(rng, word) for word in (claimed.size, claimed.colour) if word is not None]
    if count > 1:
        return " ".join([rng.choice(_NUMBERS[count]), *adjectives, _plural(noun)])
    words = " ".join([*adjectives, noun])
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(noun: str) -> str:
    return _PLURALS.get(noun, f"{noun}s")


def _word(rng: Random, word: str) -> str:
    return rng.choice(_WORDS.get(word, (word,)))


def compose_distinct(rng: Random, number: int, *, unseen: bool = False) -> list[tuple[Scene, str]]:
    """Make scenes with captions, none of which is true of another scene: a search can be evaluated on them."""
    chosen: list[tuple[Scene, Statement]] = []
    refused = 0
    while len(chosen) < number:
        scene = compose(rng, unseen=unseen)
        statement = claim(rng, scene, full=True)
        if not any(statement.is_true_of(other) or claimed.is_true_of(scene) for other, claimed in chosen):
            chosen.append((scene, statement))
            refused = 0
        elif (refused := refused + 1) == _MAX_REFUSED:  # the first statements are true of too many scenes: start again
            chosen, refused = [], 0
    return [(scene, say(rng, statement)) for scene, statement in chosen]
