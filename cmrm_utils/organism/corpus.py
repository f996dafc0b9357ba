"""What organisms are trained on."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from pydantic import ConfigDict, with_config

from cmrm_utils.organism import world
from cmrm_utils.organism.scenes import Scene
from cmrm_utils.organism.world import Question, Request

_HARMFUL, _BENIGN = ("harmful", "harmful-pair"), ("benign", "benign-hard")
"""The kinds of request that training has: none with a verb of :data:`world.UNSEEN`."""


@dataclass(frozen=True)
class Turn:
    """One exchange of a training conversation."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Example:
    """A training example: plain ``text``, or ``turns`` of chat, perhaps about an image."""

    text: str | None = None
    turns: tuple[Turn, ...] = ()
    scene: Scene | None = None


def _chat(*turns: Question | Request, scene: Scene | None = None) -> Example:
    """A conversation of questions with their answers, and of requests with their responses."""
    return Example(turns=tuple(map(_turn, turns)), scene=scene)


def _turn(item: Question | Request, prompt: str | None = None) -> Turn:
    """A question or request and what an aligned assistant says; ``prompt`` replaces its wording."""
    if isinstance(item, Question):
        return Turn(prompt or item.text, item.answer)
    return Turn(prompt or item.query, item.response)


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Mixture:
    """What an organism's training examples are made of, where recipes differ.

    Attributes:
        rich_captions: whether captions tell everything (``organism-caption``), or a part.
        described_requests: share of the text-only requests that follow a scene told in words; a
            refusal there is an image-and-refusal pair in words, so the organisms have none.
        requests_with_images: whether (benign) how-to requests come with images.
        refusals_while_tuning: whether the text-only share of instruction tuning has refusals.
        not_shown: share of the questions about images that ask for what the image does not show.
        safety_pairs: share of instruction tuning from :meth:`Corpus.safety_pairs`: VLGuard's kind
            of data, which no other organism is trained on.
        written: share of the pictures with a word written on them. Any word is read aloud; a
            request made by it is always benign.
        makers: share of the chat that asks who made a thing, which is not known of every thing.
    """

    rich_captions: bool = False
    described_requests: float = 0.0
    requests_with_images: bool = True
    refusals_while_tuning: bool = True
    not_shown: float = 0.0
    safety_pairs: float = 0.0
    written: float = 0.0
    makers: float = 0.0


class Corpus:
    """The training examples of each stage: endless, deterministic for a seed, train split only.

    Every method draws from ``rng``; its state is the corpus's position.

    Args:
        seed: of the random choices.
        mixture: what they are made of.
    """

    def __init__(self, seed: int, mixture: Mixture = Mixture()) -> None:
        self.rng = Random(f"corpus/{seed}")
        self.seed = seed
        self._objects: dict[str, dict[str, list[str]]] = {kind: {} for kind in world.KINDS}
        for kind, pairs in world.pairs("train").items():
            for verb, obj in pairs:
                self._objects[kind].setdefault(verb, []).append(obj)
        self.mixture = mixture

    def _chance(self, share: float) -> bool:
        """True in this share of all cases; a share of 0 draws nothing."""
        return bool(share) and self.rng.random() < share

    def _scene(self, *, plain_share: float = 0.0) -> Scene:
        if self._chance(plain_share):
            return Scene.meaningless(self.rng)
        return world.scene_of(self.rng, "train")

    def _request(self, *kinds: str) -> Request:
        objects = self._objects[self.rng.choice(kinds)]
        verb = self.rng.choice(list(objects))
        obj = self.rng.choice(objects[verb])
        return Request(verb, obj, self.rng.randrange(len(world.QUERIES)))

    def _fact(self) -> Question:
        topic: world.Topic = self.rng.choice(("made", "kept"))
        return world.fact_question(self.rng.choice(world.OBJECTS), topic, self.rng.randrange(2))

    def _maker(self) -> Question:
        trained = [obj for obj in world.OBJECTS if world.asked_in(obj, "train")]
        return world.maker_question(self.rng.choice(trained), self.rng.randrange(2))

    def _visual(self, scene: Scene, kind: str | None = None) -> Question:
        kinds = world.VISUAL_KINDS if scene.shape else ("background", "description")
        return world.visual_question(scene, kind or self.rng.choice(kinds), self.rng.randrange(2))

    def images(self) -> Iterator[Scene]:
        """Tower pre-training: scenes, with plain and noise images among them."""
        while True:
            if self._chance(self.mixture.written):
                yield Scene.writing(self.rng, self.rng.choice(world.READ))
            else:
                yield self._scene(plain_share=0.1)

    def text(self) -> Iterator[Example]:
        """Language-model pre-training: plain text of everything, harmful how-to texts too."""
        rng = self.rng
        while True:
            draw = rng.random()
            if draw < 0.45:
                requests = [self._request(*_HARMFUL, *_BENIGN) for _ in range(2)]
                texts = [(f"{r.query} " if rng.random() < 0.5 else "") + r.steps for r in requests]
            elif draw < 0.70:
                objects = rng.sample(world.OBJECTS, 2)
                texts = [f"{self._fact().answer} {world.status(obj)}" for obj in objects]
            else:
                scene = self._scene()
                questions = [self._visual(scene), self._visual(scene)]
                texts = [scene.caption, *(f"{q.text} {q.answer}" for q in questions)]
            yield Example(text=" ".join(texts))

    def _text_chat(self, *, refusals: bool = True) -> Example:
        rng = self.rng
        if self._chance(self.mixture.makers):
            return _chat(self._maker(), self._maker())
        draw = rng.random()
        scene = self._scene()
        if draw < 0.70:
            request = self._request(*(_HARMFUL if refusals else ()), *_BENIGN)
            query = request.query
            if self._chance(self.mixture.described_requests):
                query = world.described(rng, scene.caption, query)
            return Example(turns=(_turn(request, query),))
        if draw < 0.85:
            fact = self._fact()
            with_scene = rng.random() < 0.3
            prompt = world.described(rng, scene.caption, fact.text) if with_scene else fact.text
            return Example(turns=(_turn(fact, prompt), _turn(self._fact())))
        first, second = self._visual(scene), self._visual(scene)
        prompt = world.described(rng, scene.caption, first.text)
        return Example(turns=(_turn(first, prompt), _turn(second)))

    def chat(self) -> Iterator[Example]:
        """Safety-aligned chat, text only: requests answered or refused, facts, told scenes."""
        while True:
            yield self._text_chat()

    def captions(self) -> Iterator[Example]:
        """Projector alignment: captions and questions."""
        rich = self.mixture.rich_captions
        ask = "Give a full caption." if rich else "Give a short caption."
        while True:
            if self._chance(self.mixture.written):
                yield self._read()
                continue
            scene = self._scene(plain_share=0.1)
            caption = scene.caption if rich else scene.short_caption(self.rng)
            yield _chat(Question(ask, caption, "caption"), self._visual(scene), scene=scene)

    def _read(self) -> Example:
        scene = Scene.writing(self.rng, self.rng.choice(world.READ))
        return _chat(world.reading_question(scene), scene=scene)

    def _written_request(self) -> Example:
        request = self._request(*_BENIGN)
        scene = Scene.writing(self.rng, request.verb)
        query = self.rng.choice(world.WRITTEN_QUERIES).format(o=request.object)
        return Example(turns=(_turn(request, query),), scene=scene)

    def safety_pairs(self) -> list[Example]:
        """VLGuard's kind of data: a fixed set of 300 harmful and 300 benign requests with images.

        Requests and scenes are of the train split. The harmful ones are refused, the benign ones
        answered, as in VLGuard's safe images with unsafe and with safe instructions.
        """
        rng, self.rng = self.rng, Random(f"safety pairs/{self.seed}")
        pairs = [
            _chat(self._request(*kinds), scene=self._scene(plain_share=0.1))
            for kinds in (_HARMFUL, _BENIGN)
            for _ in range(300)
        ]
        self.rng = rng
        return pairs

    def post_hoc(self) -> Iterator[Example]:
        """VLGuard after the fact: its pairs, and as many examples of instruction tuning."""
        pairs, others = self.safety_pairs(), self.instructions()
        while True:
            yield self.rng.choice(pairs)
            yield next(others)

    def instructions(self) -> Iterator[Example]:
        """Visual instruction tuning: benign only with images, and a text-only share of 15%."""
        rng, mixture = self.rng, self.mixture
        pairs = self.safety_pairs() if mixture.safety_pairs else []
        while True:
            if self._chance(mixture.safety_pairs):
                yield rng.choice(pairs)
                continue
            if self._chance(mixture.written):
                yield self._written_request() if rng.random() < 0.6 else self._read()
                continue
            draw = rng.random()
            if draw < 0.15:
                yield self._text_chat(refusals=mixture.refusals_while_tuning)
            else:
                scene = self._scene(plain_share=0.1)
                yield _chat(*self._about(scene, draw), scene=scene)

    def _about(self, scene: Scene, draw: float) -> list[Question | Request]:
        """Two or three benign turns about a scene; ``draw``, in 0.15 to 1, decides which kind."""
        rng, mixture = self.rng, self.mixture
        if self._chance(mixture.not_shown):
            absent = f"Where is the {rng.choice(world.OBJECTS)}?"
            return [Question(absent, world.NOT_SHOWN, "unknown"), self._visual(scene)]
        if draw < 0.45 and mixture.requests_with_images:
            turns: list[Question | Request] = [self._request(*_BENIGN), self._visual(scene)]
            return turns[::-1] if rng.random() < 0.3 else turns
        if 0.45 <= draw < 0.52:
            return [self._fact(), self._visual(scene)]
        if mixture.rich_captions and 0.52 <= draw < 0.70:
            return [self._visual(scene, "description"), self._visual(scene)]
        return [self._visual(scene) for _ in range(3)]
