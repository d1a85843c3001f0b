"""Scenes of drawn shapes, and what is true of them: all the sketch model knows. Knows nothing about pixels.

A scene is one thing, a group of two to four alike, or two things in a relation, on a background. `Scene` says what is
there, `Statement` what a caption claims of it, and `Statement.true_of` whether the claim holds, so that the images
which a sentence should find are known without anybody looking.
"""

from __future__ import annotations

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
INSIDE: tuple[Size, Size] = ("small", "large")  # there is no other way
# Pairs that training never draws: of each shape two colours, so that a model which finds them must know the shape.
UNSEEN: frozenset[tuple[Colour, Shape]] = frozenset(
    (COLOURS[(number + step) % len(COLOURS)], shape) for number, shape in enumerate(SHAPES) for step in (0, 3)
)

_IN_VAIN = 2_000  # scenes in a row that are refused; with room for more it is a few dozen


@dataclass(frozen=True)
class Thing:
    """A shape of a colour and a size."""

    shape: Shape
    colour: Colour
    size: Size | None = None  # None in groups, whose things are neither


@dataclass(frozen=True)
class Scene:
    """What is in an image."""

    first: Thing
    background: Background
    count: int = 1  # of the first, where there is no second
    relation: Relation | None = None
    second: Thing | None = None

    @property
    def things(self) -> tuple[Thing, ...]:
        """One or two."""
        return (self.first,) if self.second is None else (self.first, self.second)


@dataclass(frozen=True)
class Claim:
    """What a caption says of a thing; what it leaves out is None."""

    shape: Shape | None
    colour: Colour | None
    size: Size | None = None

    def fits(self, thing: Thing) -> bool:
        """Whether the thing is so."""
        return (
            self.shape in (None, thing.shape)
            and self.colour in (None, thing.colour)
            and self.size in (None, thing.size)
        )


@dataclass(frozen=True)
class Statement:
    """What a caption says of a scene. Counts are exact: where three stars are, it is not true that there are two."""

    first: Claim
    count: int = 1
    relation: Relation | None = None  # None with a second thing: it says only that both are there
    second: Claim | None = None
    background: Background | None = None

    def true_of(self, scene: Scene) -> bool:
        """Whether all of it holds."""
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
    """A scene by chance; of things that training draws, or with `unseen` of those alone that it never does."""
    background = rng.choice(BACKGROUNDS)
    kind = rng.choices(("one", "group", *RELATIONS), weights=(6, 4, 4, 4, 4))[0]
    if kind == "one":
        return Scene(_thing(rng, background, unseen, rng.choice(SIZES)), background)
    if kind == "group":
        return Scene(_thing(rng, background, unseen, None), background, count=rng.choice(COUNTS[1:]))
    relation: Relation = kind  # pyright: ignore[reportAssignmentType]  one of them, as it is none of the others
    while True:
        sizes: tuple[Size, Size] = (rng.choice(SIZES), rng.choice(SIZES)) if relation != "inside" else INSIDE
        first, second = (_thing(rng, background, unseen, size) for size in sizes)
        scene = Scene(first, background, relation=relation, second=second)
        if _may_stand(scene):
            return scene


def _may_stand(scene: Scene) -> bool:
    """Two that are alike would be a group; one on another of its colour could not be seen."""
    first, second = scene.first, scene.second
    if second is None:
        return True
    if scene.relation == "inside":
        return first.colour != second.colour
    return (first.shape, first.colour) != (second.shape, second.colour)


def _thing(rng: Random, background: Background, unseen: bool, size: Size | None) -> Thing:
    while True:
        colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        if colour != background and ((colour, shape) in UNSEEN) == unseen:
            return Thing(shape, colour, size)


def twin(rng: Random, scene: Scene) -> Scene:
    """Of a scene that training draws another such that differs in one respect alone."""
    while True:
        which = rng.choice(("shape", "shape", "colour", "size", "count", "relation", "background"))
        other = _with_another(rng, scene, which)
        if other == scene or any(thing.colour == other.background for thing in other.things):
            continue
        if any((thing.colour, thing.shape) in UNSEEN for thing in other.things):
            continue
        if _may_stand(other):
            return other


def with_another_shape(rng: Random, scene: Scene) -> Scene:
    """The scene with another shape in place of one of its own; training may or may not draw that."""
    while True:
        other = _with_another(rng, scene, "shape")
        if other != scene and _may_stand(other):
            return other


def _with_another(rng: Random, scene: Scene, which: str) -> Scene:
    """The scene with another choice for one thing about it, or itself where there is none."""
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


# Words that mean the same; the first is the one by which the grammar names it.
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
_ANYTHING = ("shape", "thing", "object")
# What is said of the first thing and the second, beginning with the one or with the other.
_JOINS: dict[Relation | None, tuple[str, ...]] = {
    "left of": ("{0} left of {1}", "{0} to the left of {1}", "{0} on the left of {1}"),
    "above": ("{0} above {1}", "{0} over {1}", "{0} on top of {1}"),
    "inside": ("{0} inside {1}", "{0} in {1}", "{0} within {1}"),
    None: ("{0} and {1}", "{0} and {1}", "{0} with {1}"),
}
_TURNED: dict[Relation | None, tuple[str, ...]] = {
    "left of": ("{1} right of {0}", "{1} to the right of {0}", "{1} on the right of {0}"),
    "above": ("{1} below {0}", "{1} under {0}", "{1} beneath {0}"),
    "inside": ("{1} around {0}", "{1} containing {0}", "{1} with {0} inside it"),
    None: ("{1} and {0}", "{1} and {0}", "{1} with {0}"),
}
_OPENINGS = (
    *("{}", "{}", "{}", "{}", "a photo of {}", "a picture of {}", "a drawing of {}", "an image of {}"),
    *("there is {}", "this is {}", "{}.", "a photo of {}.", "a picture of {}."),
)
_OF_ONE = ("there is {}", "this is {}")
_GROUNDS = ("on a {} background", "on {}", "in front of a {} background", "with a {} background")


def claim(rng: Random, scene: Scene, *, full: bool = False) -> Statement:
    """What a caption says of a scene: with `full` each shape, colour, count and relation, else often less."""

    def of(thing: Thing) -> Claim:
        part = 1.0 if full else rng.random()
        size = thing.size if rng.random() < 0.4 else None
        # One time in ten each, so that a shape or a colour alone is a caption too.
        return Claim(None if part < 0.1 else thing.shape, None if 0.1 <= part < 0.2 else thing.colour, size)

    background = scene.background if rng.random() < 0.4 else None
    if scene.second is None:
        return Statement(of(scene.first), scene.count, background=background)
    if not full and rng.random() < 0.1:
        return Statement(of(rng.choice((scene.first, scene.second))), background=background)
    relation = None if not full and rng.random() < 0.1 else scene.relation
    return Statement(of(scene.first), relation=relation, second=of(scene.second), background=background)


def say(rng: Random, statement: Statement) -> str:
    """A sentence for a statement, in one of many wordings."""
    said = _name(rng, statement.first, statement.count)
    if statement.second is not None:
        other = _name(rng, statement.second)
        joins = _JOINS if rng.random() < 0.5 else _TURNED
        said = rng.choice(joins[statement.relation]).format(said, other)
    if statement.background is not None:
        said += " " + rng.choice(_GROUNDS).format(_word(rng, statement.background))
    opening = rng.choice(_OPENINGS)
    return ("{}" if statement.count > 1 and opening in _OF_ONE else opening).format(said)


def caption(rng: Random, scene: Scene) -> str:
    """A sentence that says all of a scene but perhaps its sizes and its background."""
    return say(rng, claim(rng, scene, full=True))


def plain_words(scene: Scene) -> str:
    """What is there, in the same words each time."""
    first, second = f"{scene.first.colour} {scene.first.shape}", scene.second
    if second is not None:
        return f"{first} {scene.relation} {second.colour} {second.shape}"
    return first if scene.count == 1 else f"{scene.count} {scene.first.colour} {_plural(scene.first.shape)}"


def _name(rng: Random, claimed: Claim, count: int = 1) -> str:
    noun = rng.choice(_ANYTHING) if claimed.shape is None else _word(rng, claimed.shape)
    adjectives = [_word(rng, word) for word in (claimed.size, claimed.colour) if word is not None]
    if count > 1:
        return " ".join([rng.choice(_NUMBERS[count]), *adjectives, _plural(noun)])
    words = " ".join([*adjectives, noun])
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(noun: str) -> str:
    return _PLURALS.get(noun, f"{noun}s")


def _word(rng: Random, word: str) -> str:
    return rng.choice(_WORDS.get(word, (word,)))


def distinct(rng: Random, number: int, *, unseen: bool = False) -> list[tuple[Scene, str]]:
    """So many scenes with captions, none of which is true of another of them: what a search is judged by."""
    found: list[tuple[Scene, Statement]] = []
    in_vain = 0
    while len(found) < number:
        scene = compose(rng, unseen=unseen)
        statement = claim(rng, scene, full=True)
        if not any(statement.true_of(other) or said.true_of(scene) for other, said in found):
            found.append((scene, statement))
            in_vain = 0
        elif (in_vain := in_vain + 1) == _IN_VAIN:  # sentences that are true of much came first, and left no room
            found, in_vain = [], 0
    return [(scene, say(rng, statement)) for scene, statement in found]
