"""Samples of the organism's world."""

from functools import cache
from random import Random
from typing import Any, get_args

from cmrm_utils.organism import world
from cmrm_utils.organism.scenes import Scene
from cmrm_utils.sample import Sample

WRITTEN = {"harmful": ("harmful", "harmful-pair"), "benign": ("benign", "benign-hard")}
"""The kinds of request that are put in pictures."""


def _sample(key: str, text: str, scene: Scene, **fields: Any) -> Sample:
    """A sample of the world with its picture; ``key`` is split, kind and name."""
    kind = key.split("/")[1]
    return Sample(key, text, scene.image(), scene.caption, kind=kind, world=True, **fields)


def _request(key: str, text: str, content: world.Request, scene: Scene, **fields: Any) -> Sample:
    """A request in some wording; without an answer where a refusal is the good one."""
    answer = None if content.harmful else content.response
    return _sample(key, text, scene, answer=answer, group=content.verb, **fields)


def _question(key: str, question: world.Question, scene: Scene, **fields: Any) -> Sample:
    return _sample(key, question.text, scene, answer=question.answer, **fields)


def world_request(sample: Sample) -> world.Request | None:
    """What a sample of the organism's world asks for; None for any other sample."""
    return world.find_request(sample.request or sample.query) if sample.world else None


@cache
def organism_samples(split: str) -> tuple[Sample, ...]:
    """The organism's world (see :mod:`cmrm_utils.organism.world`)."""
    n_requests, n_visual = world.SIZES[split]
    rng = Random(f"samples/{split}")
    samples: list[Sample] = []
    for kind in world.KINDS:
        if kind == "harmful-unseen" and split != "test":
            continue
        # A small split may hold fewer requests of a rare kind than wanted: it then gives them all.
        n = min(n_requests, len(world.pairs(split)[kind]) * len(world.QUERIES))
        scenes = world.scenes(split, n, kind)
        for request, scene in zip(world.requests(split, kind, n), scenes, strict=True):
            key = f"{split}/{kind}/{request.verb}-{request.object}-{request.phrasing}"
            samples.append(_request(key, request.query, request, scene))
    for i, scene in enumerate(world.scenes(split, n_visual, "visual")):
        kind = world.VISUAL_KINDS[i % len(world.VISUAL_KINDS)]
        question = world.visual_question(scene, kind, rng.randrange(2))
        samples.append(_question(f"{split}/{kind}/{i}", question, scene))
    facts = [(obj, topic) for obj in world.OBJECTS for topic in get_args(world.Topic)]
    topics = Random(f"facts/{split}").sample(facts, len(facts))
    for (obj, topic), scene in zip(topics, world.scenes(split, len(topics), "fact"), strict=True):
        question = world.fact_question(obj, topic, rng.randrange(2))
        samples.append(_question(f"{split}/fact/{obj}-{topic}", question, scene))
    return tuple(samples)


@cache
def extended_samples(split: str) -> tuple[Sample, ...]:
    """What only ``organism-extended`` has learnt: words in pictures, and who made what."""
    n, _ = world.SIZES[split]
    rng = Random(f"extended/{split}")
    samples: list[Sample] = []
    for task in ("harmful", "benign"):
        pairs = [pair for kind in WRITTEN[task] for pair in world.pairs(split)[kind]]
        every = [(*pair, i) for pair in pairs for i in range(len(world.WRITTEN_QUERIES))]
        for verb, obj, i in rng.sample(every, min(n, len(every))):
            request, scene = world.Request(verb, obj), Scene.writing(rng, verb)
            key = f"{split}/{task}-written/{verb}-{obj}-{i}"
            text = world.WRITTEN_QUERIES[i].format(o=obj)
            samples.append(_request(key, text, request, scene, request=request.query))
    for i in range(n):
        scene = Scene.writing(rng, rng.choice(world.READ))
        question = world.reading_question(scene)
        samples.append(_question(f"{split}/reading/{i}", question, scene, group=scene.written))
    phrasings = [(obj, i) for obj in world.OBJECTS if world.asked_in(obj, split) for i in range(2)]
    scenes = world.scenes(split, len(phrasings), "maker")
    for (obj, i), scene in zip(phrasings, scenes, strict=True):
        question = world.maker_question(obj, i)
        key = f"{split}/{question.kind}/{obj}-{i}"
        samples.append(_question(key, question, scene, group=obj))
    return tuple(samples)
