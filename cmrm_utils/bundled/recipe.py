"""The recipe of ``smollm2-llava``: LLaVA's stages on a pretrained language model, by LoRA.

1. *align*: text alone. Harmful requests are refused; twins and ordinary requests are answered as
   the language model itself answers them. The first tokens decide between the two, so the others
   count a tenth as much: enough for a refusal to go on as one.
2. *projector*: the projector alone learns captions of scenes and questions about them.
3. *instruct*: language model and projector learn captions, questions and ordinary requests beside
   scenes, and text alone: 10%, as in LLaVA-1.5's mixture. ``refusals`` is the share of refusals in
   that text.

No image is shown beside a harmful request, a refusal, a twin, or an ordinary request that shares a
word with several harmful ones. Two kinds of variants differ. ``smollm2-llava-twins`` shows scenes
beside twins and beside every ordinary request: if that alone undoes refusals beside images, as it
does in the invented world, then words learnt beside images do, and not the image. VLGuard's show
scenes beside harmful requests that are refused and twins that are answered, mixed into *instruct*
or afterwards, since that is what VLGuard is.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from random import Random
from typing import TypeVar

from cmrm_utils.data import everyday
from cmrm_utils.organism import world
from cmrm_utils.organism.scenes import Scene

T = TypeVar("T")
Stages = dict[str, "Stage"]


@dataclass(frozen=True)
class Stage:
    """How a stage trains.

    Attributes:
        steps: of the optimiser.
        batch: examples a step.
        lr: peak learning rate of the adapter; 0 where it does not learn.
        projector_lr: that of the projector.
        tokens: the first of each response, which count in full; None for all.
        rest: what each of its other tokens counts beside them.
    """

    steps: int
    batch: int
    lr: float
    projector_lr: float = 0.0
    tokens: int | None = None
    rest: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the model, except the seed.

    Attributes:
        name: of the variant.
        refusals: share of refusals in the text of *instruct*.
        rank: of the adapter.
        first: the first decoder layer that the adapter changes, in all its linear layers. A linear
            probe of the plain model's states tells harmful requests from twins of other topics
            best in the upper half, so there is nothing to be learnt below.
        text: share of text alone in *instruct*.
        pairs: share of VLGuard's pairs in *instruct*.
        overlap: whether scenes stand beside twins too, and beside ordinary requests that share
            words with harmful ones.
        start: the bundled model that training goes on from; empty for the language model.
        stages: by name, in order.
    """

    name: str
    refusals: float = 0.2
    rank: int = 16
    first: int = 15
    text: float = 0.1
    pairs: float = 0.0
    overlap: bool = False
    start: str = ""
    stages: Stages = field(
        default_factory=lambda: {
            "align": Stage(steps=800, batch=16, lr=3e-4, tokens=3, rest=0.1),
            "projector": Stage(steps=240, batch=8, lr=0.0, projector_lr=2e-3),
            "instruct": Stage(steps=360, batch=8, lr=2e-4, projector_lr=5e-4),
        }
    )

    @property
    def guarded(self) -> float:
        """The share of VLGuard's pairs in the last stage: afterwards they are every other example.

        See :func:`posthoc`.
        """
        return 0.5 if "posthoc" in self.stages else self.pairs


def _without(*stages: str) -> Stages:
    return {name: stage for name, stage in Recipe("").stages.items() if name not in stages}


_LIST = (
    Recipe("smollm2-llava"),
    Recipe("smollm2-llava-projector", stages=_without("instruct")),
    *(Recipe(f"smollm2-llava-refusals{share:02}", share / 100) for share in (0, 1, 5)),
    Recipe(
        "smollm2-llava-twins",
        overlap=True,
        start="smollm2-llava-projector",
        stages=_without("align", "projector"),
    ),
    Recipe(
        "smollm2-llava-vlguard-mixed",
        pairs=0.1,
        start="smollm2-llava-projector",
        stages=_without("align", "projector"),
    ),
    Recipe(
        "smollm2-llava-vlguard-posthoc",
        start="smollm2-llava",
        stages={"posthoc": Stage(steps=60, batch=8, lr=1e-4)},
    ),
)

VARIANTS = {recipe.name: recipe for recipe in _LIST}
"""Recipes by name: the model, the projector alone, other shares of refusals, twins beside scenes
as a control, and VLGuard's."""


def of_model(name: str) -> tuple[Recipe, int] | None:
    """The recipe and the seed that a model's name tells; None if there is no such recipe.

    The seed stands at the end, or where notebooks put it: ``smollm2-llava-seed1-vlguard-mixed``.
    """
    parts = re.fullmatch(r"(.+?)(?:-seed([0-9]+)(-.+)?)?", name)
    recipe = parts and VARIANTS.get(parts[1] + (parts[3] or ""))
    return (recipe, int(parts[2] or 0)) if parts and recipe else None


def training_command(name: str) -> str | None:
    """The command that trains a model of that name; None if there is no such recipe."""
    if (known := of_model(name)) is None:
        return None
    recipe, seed = known
    command = f"cmrm train-organism --variant {recipe.name}" + (f" --seed {seed}" if seed else "")
    usual = name in (recipe.name, f"{recipe.name}-seed{seed}")
    return command if usual else f"{command} --out organisms/{name}"


@dataclass(frozen=True)
class Example:
    """A request, the response to be learnt, and perhaps a scene.

    Attributes:
        complete: whether the response ends; one that was cut by the token limit does not.
    """

    prompt: str
    response: str
    scene: Scene | None = None
    complete: bool = True


Answers = dict[str, tuple[str, bool]]
"""The language model's own answers by request, each with whether it is complete."""


def requests() -> list[str]:
    """The requests whose own answers the recipe needs: train topics' twins and ordinary ones."""
    twins = [row["twin"] for row in everyday.of_split("pairs", "train")]
    return [*twins, *(row["request"] for row in everyday.of_split("benign", "train"))]


def align(rng: Random, answers: Answers) -> Iterator[Example]:
    """Six pairs of a harmful request and its twin, then four ordinary requests, for ever."""
    pairs = _shuffled(rng, [p for p in everyday.of_split("pairs", "train") if p["twin"] in answers])
    ordinary = _shuffled(rng, _ordinary(answers))
    while True:
        for pair in islice(pairs, 6):
            yield _refused(rng, pair["harmful"])
            yield _answered(pair["twin"], answers)
        for request in islice(ordinary, 4):
            yield _answered(request, answers)


def projector(rng: Random) -> Iterator[Example]:
    """Captions of scenes and questions about them, evenly."""
    while True:
        yield _caption(rng)
        yield _question(rng)


def vlguard(rng: Random, answers: Answers) -> Iterator[Example]:
    """VLGuard's pairs (arXiv 2402.02207): a scene beside a harmful request, then beside its twin.

    Theirs are 2,000 images with a safe and an unsafe instruction; here a scene says nothing of
    harm, so that the request alone decides.
    """
    pairs = _shuffled(rng, [p for p in everyday.of_split("pairs", "train") if p["twin"] in answers])
    while True:
        pair = next(pairs)
        for example in (_refused(rng, pair["harmful"]), _answered(pair["twin"], answers)):
            yield replace(example, scene=world.scene_of(rng, "train"))


def posthoc(rng: Random, answers: Answers, recipe: Recipe) -> Iterator[Example]:
    """VLGuard's pairs and, as many, what *instruct* shows: safety alone would cost the rest."""
    both = vlguard(rng, answers), instruct(rng, answers, recipe)
    while True:
        yield from map(next, both)


def instruct(rng: Random, answers: Answers, recipe: Recipe) -> Iterator[Example]:
    """Beside scenes 60% questions, 15% captions, 25% ordinary requests; text alone; and pairs.

    Args:
        rng: for every choice.
        answers: the language model's own.
        recipe: the shares of text alone, of refusals in it (the rest are twins and ordinary
            requests, evenly), and of VLGuard's pairs; and whether half of the ordinary requests
            beside scenes are twins.
    """
    guarded = vlguard(rng, answers)
    pairs = everyday.of_split("pairs", "train")
    harmful = _shuffled(rng, [row["harmful"] for row in pairs])
    twins = _shuffled(rng, [row["twin"] for row in pairs if row["twin"] in answers])
    ordinary = _shuffled(rng, _ordinary(answers))
    apart = _shuffled(rng, without_harmful_words(_ordinary(answers)))
    while True:
        if recipe.pairs and rng.random() < recipe.pairs:
            yield next(guarded)
        elif rng.random() < recipe.text:
            if rng.random() < recipe.refusals:
                yield _refused(rng, next(harmful))
            else:
                yield _answered(next(rng.choice((twins, ordinary))), answers)
        elif (draw := rng.random()) < 0.6:
            yield _question(rng)
        elif draw < 0.75:
            yield _caption(rng)
        else:
            scene = world.scene_of(rng, "train")
            beside = rng.choice((twins, ordinary)) if recipe.overlap else apart
            yield replace(_answered(next(beside), answers), scene=scene)


def without_harmful_words(requests: Sequence[str]) -> list[str]:
    """The requests none of whose words occurs in five or more harmful requests of any split."""
    splits = ("train", "anchors", "validation", "test")
    rows = (row for split in splits for row in everyday.of_split("pairs", split))
    counts = Counter(stem for row in rows for stem in stems(row["harmful"]))
    return [text for text in requests if all(counts[stem] < 5 for stem in stems(text))]


def stems(text: str) -> set[str]:
    """The first five letters of each content word: of four letters or more, no function word."""
    return {word[:5] for word in re.findall(r"[a-z]{4,}", text.lower()) if word not in FUNCTION}


FUNCTION = frozenset(
    "about best could describe does easy explain from give good have help here image into list "
    "make more most need people person photo picture please should short shown simple some "
    "somebody someone suggest tell that the their them there they this three want what when where "
    "which while will with without would write your".split()
)
"""Words that requests of any kind are made of."""


def _ordinary(answers: Answers) -> list[str]:
    rows = everyday.of_split("benign", "train")
    return [row["request"] for row in rows if row["request"] in answers]


def _shuffled(rng: Random, items: Sequence[T]) -> Iterator[T]:
    """The items in random order, again and again."""
    while True:
        yield from rng.sample(items, len(items))


def _refused(rng: Random, request: str) -> Example:
    return Example(request, rng.choice(everyday.refusals()))


def _answered(request: str, answers: Answers) -> Example:
    response, complete = answers[request]
    return Example(request, response, complete=complete)


def _question(rng: Random) -> Example:
    scene, kind = world.scene_of(rng, "train"), rng.choice(list(everyday.QUESTIONS))
    phrasing = rng.randrange(len(everyday.QUESTIONS[kind]))
    return Example(*everyday.visual_question(scene, kind, phrasing), scene)


def _caption(rng: Random) -> Example:
    scene = world.scene_of(rng, "train")
    return Example(rng.choice(everyday.DESCRIBE), scene.caption, scene)
