"""What organisms are trained on."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from cmrm_utils.organism.scenes import Scene
from cmrm_utils.organism.world import (
    KINDS,
    NOT_SHOWN,
    OBJECTS,
    QUERIES,
    READ,
    VISUAL_KINDS,
    WRITTEN_QUERIES,
    Question,
    Request,
    Topic,
    asked_in,
    described,
    fact_question,
    maker_question,
    pairs,
    reading_question,
    split_of,
    status,
    visual_question,
)


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


def _turn(question: Question) -> Turn:
    return Turn(question.text, question.answer)


@dataclass(frozen=True)
class Mixture:
    """What an organism's training examples are made of, where recipes differ.

    Attributes:
        rich_captions: captions that tell everything (``organism-caption``), not a part.
        described_requests: share of the text-only requests that follow a scene told in words; a
            refusal there is an image-and-refusal pair in words, so that the organisms have none.
        requests_with_images: whether (benign) how-to requests come with images.
        refusals_while_tuning: whether the text-only share of instruction tuning has refusals.
        not_shown: share of the questions about images that ask for what the image does not show.
        safety_pairs: share of instruction tuning from :meth:`Corpus.safety_pairs`: what VLGuard
            trains on, and no other organism.
        written: share of the pictures with a word written on them. The word is read aloud,
            whatever it is; what is requested by it is benign.
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

    Args:
        seed: of the random choices.
        mixture: what they are made of.

    ``rng`` is their source: its state is where the corpus stands.
    """

    def __init__(self, seed: int, mixture: Mixture = Mixture()) -> None:
        self.rng = Random(f"corpus/{seed}")
        self._seed = seed
        self._objects: dict[str, dict[str, list[str]]] = {kind: {} for kind in KINDS}
        for kind, found in pairs("train").items():
            for verb, obj in found:
                self._objects[kind].setdefault(verb, []).append(obj)
        self.mixture = mixture

    def _chance(self, share: float) -> bool:
        """True in so many of all cases; nothing is drawn where it is none."""
        return bool(share) and self.rng.random() < share

    def _scene(self, *, plain_share: float = 0.0) -> Scene:
        if self._chance(plain_share):
            return Scene.meaningless(self.rng)
        while True:
            scene = Scene.random(self.rng)
            if split_of("scene", scene.caption) == "train":
                return scene

    def _request(self, *kinds: str) -> Request:
        objects = self._objects[self.rng.choice(kinds)]
        verb = self.rng.choice(list(objects))
        return Request(verb, self.rng.choice(objects[verb]), self.rng.randrange(len(QUERIES)))

    def _fact(self) -> Question:
        topic: Topic = self.rng.choice(("made", "kept"))
        return fact_question(self.rng.choice(OBJECTS), topic, self.rng.randrange(2))

    def _visual(self, scene: Scene, kind: str | None = None) -> Question:
        kinds = VISUAL_KINDS if scene.shape else ("background", "description")
        return visual_question(scene, kind or self.rng.choice(kinds), self.rng.randrange(2))

    def images(self) -> Iterator[Scene]:
        """Tower pre-training: scenes, with plain and noise images among them."""
        while True:
            if self._chance(self.mixture.written):
                yield Scene.writing(self.rng, self.rng.choice(READ))
            else:
                yield self._scene(plain_share=0.1)

    def text(self) -> Iterator[Example]:
        """Language-model pre-training: plain text of everything, harmful how-to texts too."""
        rng = self.rng
        while True:
            draw = rng.random()
            if draw < 0.45:
                kinds = ("harmful", "harmful-pair", "benign", "benign-hard")
                asked = [self._request(*kinds) for _ in range(2)]
                told = [(f"{r.query} " if rng.random() < 0.5 else "") + r.steps for r in asked]
                yield Example(text=" ".join(told))
            elif draw < 0.70:
                objects = rng.sample(OBJECTS, 2)
                yield Example(text=" ".join(f"{self._fact().answer} {status(o)}" for o in objects))
            else:
                scene = self._scene()
                told = [f"{q.text} {q.answer}" for q in (self._visual(scene), self._visual(scene))]
                yield Example(text=" ".join([scene.caption, *told]))

    def _maker(self) -> Question:
        trained = [obj for obj in OBJECTS if asked_in(obj, "train")]
        return maker_question(self.rng.choice(trained), self.rng.randrange(2))

    def _text_chat(self, *, refusals: bool = True) -> Example:
        rng = self.rng
        if self._chance(self.mixture.makers):
            return Example(turns=(_turn(self._maker()), _turn(self._maker())))
        draw = rng.random()
        scene = self._scene()
        if draw < 0.70:
            kinds = ("harmful", "harmful-pair", "benign", "benign-hard")
            request = self._request(*kinds[0 if refusals else 2 :])
            query = request.query
            if self._chance(self.mixture.described_requests):
                query = described(rng, scene.caption, query)
            return Example(turns=(Turn(query, request.response),))
        if draw < 0.85:
            fact = self._fact()
            told = rng.random() < 0.3
            prompt = described(rng, scene.caption, fact.text) if told else fact.text
            return Example(turns=(Turn(prompt, fact.answer), _turn(self._fact())))
        first, second = self._visual(scene), self._visual(scene)
        told_first = Turn(described(rng, scene.caption, first.text), first.answer)
        return Example(turns=(told_first, _turn(second)))

    def chat(self) -> Iterator[Example]:
        """Safety-aligned chat, text only: requests answered or refused, facts, told scenes."""
        while True:
            yield self._text_chat()

    def captions(self) -> Iterator[Example]:
        """Projector alignment: captions and questions."""
        rich = self.mixture.rich_captions
        while True:
            if self._chance(self.mixture.written):
                yield self._read()
                continue
            scene = self._scene(plain_share=0.1)
            caption = scene.caption if rich else scene.short_caption(self.rng)
            ask = "Give a full caption." if rich else "Give a short caption."
            yield Example(turns=(Turn(ask, caption), _turn(self._visual(scene))), scene=scene)

    def _read(self) -> Example:
        scene = Scene.writing(self.rng, self.rng.choice(READ))
        return Example(turns=(_turn(reading_question(scene)),), scene=scene)

    def _written_request(self) -> Example:
        request = self._request("benign", "benign-hard")
        scene = Scene.writing(self.rng, request.verb)
        query = self.rng.choice(WRITTEN_QUERIES).format(o=request.object)
        return Example(turns=(Turn(query, request.response),), scene=scene)

    def safety_pairs(self) -> list[Example]:
        """VLGuard's kind of data: a fixed set of 300 harmful and 300 benign requests with images.

        Of the train split, requests and scenes alike; the harmful ones are refused, the benign
        ones answered, as in VLGuard's safe images with unsafe and with safe instructions.
        """
        rng, self.rng = self.rng, Random(f"safety pairs/{self._seed}")
        found = []
        for kinds in (("harmful", "harmful-pair"), ("benign", "benign-hard")):
            for _ in range(300):
                request = self._request(*kinds)
                turn = Turn(request.query, request.response)
                found.append(Example(turns=(turn,), scene=self._scene(plain_share=0.1)))
        self.rng = rng
        return found

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
                continue
            scene = self._scene(plain_share=0.1)
            if self._chance(mixture.not_shown):
                absent = f"Where is the {rng.choice(OBJECTS)}?"
                turns = [Turn(absent, NOT_SHOWN), _turn(self._visual(scene))]
            elif draw < 0.45 and mixture.requests_with_images:
                request = self._request("benign", "benign-hard")
                turns = [Turn(request.query, request.response), _turn(self._visual(scene))]
                if rng.random() < 0.3:
                    turns.reverse()
            elif 0.45 <= draw < 0.52:
                turns = [_turn(self._fact()), _turn(self._visual(scene))]
            elif mixture.rich_captions and 0.52 <= draw < 0.70:
                turns = [_turn(self._visual(scene, "description")), _turn(self._visual(scene))]
            else:
                turns = [_turn(self._visual(scene)) for _ in range(3)]
            yield Example(turns=tuple(turns), scene=scene)
