"""The requests: what they must hold, what they must not, and that splits share nothing."""

import json
import re

import pytest

from cmrm_utils.bundled.recipe import stems
from cmrm_utils.data import everyday
from cmrm_utils.data.everyday import FOLDER, everyday_samples, of_split
from cmrm_utils.data.load import load_samples
from cmrm_utils.judges.keywords import is_refusal
from cmrm_utils.sample import SPLITS

ALL = ("train", *SPLITS)
BANNED = (
    r"\b(suicid\w*|self-harm\w*|kill (myself|yourself|himself|herself)|sexual\w*|porn\w*|naked|nude"
    r"|rap(e|ing|ist)|explosives?|bioweapons?|nerve (gas|agent)|anthrax|ricin|cyanide|arsenic"
    r"|cocaine|heroin|fentanyl|meth(amphetamine)?|ketamine|\d+ ?(mg|ml|grams?|milligrams?)"
    r"|(build|make|assemble|plant|hide) an? (\w+ )?bomb|grenades?|landmines?|uranium|sarin"
    r"|retard(ed|s)?|(a|the) cripple|cripples|spastics?"
    r"|gyps(y|ies)|midgets?|trann(y|ies)|sluts?|whores?|bitch(es)?"
    r"|def |import |sudo|select \*)\b|```|https?:"
)


def rows(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def test_there_is_as_much_as_is_said():
    pairs, benign = rows("pairs"), rows("benign")
    assert len({row["topic"] for row in pairs}) >= 60
    assert len(pairs) >= 1000
    assert len(benign) >= 1000
    assert len({row["topic"] for row in of_split("pairs", "test")}) >= 20
    assert len(of_split("pairs", "test")) >= 240
    assert {row["form"] for row in pairs} == {"plain", "picture"}


def test_requests_are_single_sentences_of_usual_length():
    texts = [row[text] for row in rows("pairs") for text in ("harmful", "twin")]
    texts += [row["request"] for row in rows("benign")]
    assert all(3 <= len(text.split()) <= 32 for text in texts)
    assert len({" ".join(text.lower().split()) for text in texts}) == len(texts)
    harmful = [row["harmful"] for row in rows("pairs")]
    assert all(len(re.findall(r"[.?!](?=\s)", text)) <= 1 for text in harmful)


def test_nothing_banned_is_in_any_file():
    for file in FOLDER.iterdir():
        found = [m[0] for m in re.finditer(BANNED, file.read_text().lower())]
        assert not found, f"{file.name}: {found}"


def test_harmful_requests_name_no_real_person():
    """Nor does anything in them look like a name: capitals within a sentence are these alone."""
    known = set("I Muslim Jewish Black English French Spanish TV ID PIN X".split())
    known |= {
        f"{day}day{s}" for s in ("", "s") for day in "Mon Tues Wednes Thurs Fri Satur Sun".split()
    }
    for row in rows("pairs"):
        found = {
            word.partition("'")[0]
            for word in re.findall(r"(?<=[a-z,'] )[A-Z][\w']*", row["harmful"])
        }
        assert found <= known, (row["harmful"], found - known)


def test_a_twin_shares_words_with_its_partner():
    for row in rows("pairs"):
        harmful, twin = (
            {word[:5] for word in re.findall(r"[a-z]{4,}", row[text].lower())}
            for text in ("harmful", "twin")
        )
        assert len(harmful & twin) >= min(3, len(twin) / 2), row
        assert row["harmful"] != row["twin"]


@pytest.mark.parametrize("name", ["pairs", "benign", "facts"])
def test_splits_share_no_topic_and_leave_none_out(name):
    topics = json.loads((FOLDER / "topics.json").read_text())[name]
    listed = [topic for split in ALL for topic in topics[split]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {row["topic"] for row in rows(name)}


def test_splits_share_no_request_and_no_picture():
    seen = {}
    for split in SPLITS:
        for sample in everyday_samples(split):
            for what in (sample.query, sample.image.tobytes()):
                if sample.task != "visual" or what is not sample.query:
                    assert seen.setdefault(what, split) == split


def test_samples_are_what_a_study_asks():
    samples = load_samples("everyday", "test")
    assert len({s.id for s in samples}) == len(samples)
    assert {s.task for s in samples} == {"harmful", "benign", "visual", "fact"}
    harmful = [s for s in samples if s.harmful]
    twins = [s for s in samples if s.kind.startswith("benign-twin")]
    assert len(harmful) == len(twins) == len(of_split("pairs", "test"))
    for bad, good in zip(harmful, twins, strict=True):
        assert bad.id.rpartition("/")[2] == good.id.rpartition("/")[2]
        assert (bad.group, bad.caption) == (good.group, good.caption)
        assert bad.image.tobytes() == good.image.tobytes()
    assert not any(s.world for s in samples)


def test_visual_questions_have_the_answer_that_the_picture_shows():
    for sample in everyday_samples("validation"):
        if sample.task == "visual":
            word = sample.answer.rstrip(".").lower()
            assert word in sample.caption.lower()


def test_refusals_are_refusals_that_open_with_a_word_of_their_own():
    assert len(set(everyday.refusals())) >= 8
    assert all(text.startswith("Sorry, ") for text in everyday.refusals())
    assert all(map(is_refusal, everyday.refusals()))


def test_no_answer_to_a_harmful_request_is_stored():
    for row in rows("pairs"):
        assert set(row) == {"topic", "form", "harmful", "twin", "caption"}


def test_stems_are_content_words():
    assert stems("How do I open my neighbour's front door?") == {"open", "neigh", "front", "door"}


@pytest.mark.parametrize(("split", "first", "most"), [("validation", 6, 3), ("test", 12, 2)])
def test_a_few_requests_are_of_many_topics(split, first, most):
    """And a block's are those that the stored runs have: the first topics, whole."""
    samples = everyday_samples(split)
    assert len({sample.id for sample in samples}) == len(samples)
    for kind in ("harmful", "harmful-picture", "benign-twin", "benign"):
        these = [sample for sample in samples if sample.kind == kind]
        groups = [sample.group for sample in these[:first]]
        assert max(map(groups.count, groups)) <= most
        block = everyday.BLOCKS[split]
        topics = {sample.group for sample in these[:block]}
        rest = {sample.group for sample in these[block:]}
        assert len(topics & rest) <= 1
