"""Samples of the organism's world."""

from functools import cache
from random import Random
from typing import Any, get_args

from cmrm_utils.organism import world
from cmrm_utils.sample import Sample

WRITTEN = {"harmful": ("harmful", "harmful-pair"), "benign": ("benign", "benign-hard")}
"""Which kinds of request are put in pictures."""


@cache
def organism_samples(split: str) -> tuple[Sample, ...]:
    """The organism's world (see :mod:`cmrm_utils.organism.world`)."""
    n_requests, n_visual = world.SIZES[split]
    rng = Random(f"samples/{split}")
    found: list[Sample] = []

    def add(kind: str, name: str, text: str, scene: Any, **fields: Any) -> None:
        picture = {"image": scene.image(), "caption": scene.caption} if scene else {}
        key = f"{split}/{kind}/{name}"
        found.append(Sample(key, text, kind=kind, world=True, **picture, **fields))

    for kind in world.KINDS:
        if kind == "harmful-unseen" and split != "test":
            continue
        # A small split may hold fewer requests of a rare kind than asked for: all of them then.
        n = min(n_requests, len(world.pairs(split)[kind]) * len(world.QUERIES))
        scenes = world.scenes(split, n, kind)
        for request, scene in zip(world.requests(split, kind, n), scenes, strict=True):
            answer = None if request.harmful else request.response
            name = f"{request.verb}-{request.object}-{request.phrasing}"
            add(kind, name, request.query, scene, answer=answer, group=request.verb)
    for i, scene in enumerate(world.scenes(split, n_visual, "visual")):
        question = world.visual_question(
            scene, world.VISUAL_KINDS[i % len(world.VISUAL_KINDS)], rng.randrange(2)
        )
        add(question.kind, str(i), question.text, scene, answer=question.answer)
    facts = [(obj, topic) for obj in world.OBJECTS for topic in get_args(world.Topic)]
    topics = Random(f"facts/{split}").sample(facts, len(facts))
    for (obj, topic), scene in zip(topics, world.scenes(split, len(topics), "fact"), strict=True):
        question = world.fact_question(obj, topic, rng.randrange(2))
        add("fact", f"{obj}-{topic}", question.text, scene, answer=question.answer)
    return tuple(found)


@cache
def extended_samples(split: str) -> tuple[Sample, ...]:
    """What only ``organism-extended`` learnt of: words in pictures, and who made what."""
    n, _ = world.SIZES[split]
    rng = Random(f"extended/{split}")
    found: list[Sample] = []

    def add(kind: str, name: str, text: str, scene: Any, group: str, **fields: Any) -> None:
        shown = {"image": scene.image(), "caption": scene.caption, "group": group}
        key = f"{split}/{kind}/{name}"
        found.append(Sample(key, text, kind=kind, world=True, **shown, **fields))

    for task in ("harmful", "benign"):
        pairs = [pair for kind in WRITTEN[task] for pair in world.pairs(split)[kind]]
        every = [(*pair, i) for pair in pairs for i in range(len(world.WRITTEN_QUERIES))]
        for verb, obj, i in rng.sample(every, min(n, len(every))):
            request, scene = world.Request(verb, obj), world.Scene.writing(rng, verb)
            answer = None if request.harmful else request.response
            query = world.WRITTEN_QUERIES[i].format(o=obj)
            name, said = f"{verb}-{obj}-{i}", request.query
            add(f"{task}-written", name, query, scene, verb, answer=answer, request=said)
    for i in range(n):
        scene = world.Scene.writing(rng, rng.choice(world.READ))
        question = world.reading_question(scene)
        add("reading", str(i), question.text, scene, scene.written, answer=question.answer)
    asked = [(obj, i) for obj in world.OBJECTS if world.asked_in(obj, split) for i in range(2)]
    scenes = world.scenes(split, len(asked), "maker")
    for (obj, i), scene in zip(asked, scenes, strict=True):
        question = world.maker_question(obj, i)
        add(question.kind, f"{obj}-{i}", question.text, scene, obj, answer=question.answer)
    return tuple(found)
