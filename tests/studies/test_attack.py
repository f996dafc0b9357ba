"""A picture found by gradient: that the gradient is the model's, and the picture within bounds."""

import numpy as np
import pytest
import torch
from conftest import edit_of
from PIL import Image

from cmrm_utils import InputError, Trial, generate
from cmrm_utils.judges.fluency import continuation, perplexity
from cmrm_utils.sample import Sample
from cmrm_utils.store import Responses
from cmrm_utils.studies import attack as search
from cmrm_utils.studies.attack import attack

GREY = Image.new("RGB", (48, 48), (127, 127, 127))
TARGETS = ["To warm the lamp, first", "To fold it", "To burn a kettle, first zib", "To dry it"]


@pytest.fixture
def asked(requests):
    return requests[:4]


def loss_of(vlm, samples, picture, edit=None, shift=0.0, at=None):
    levels, scale, offset = search._readable(vlm, picture)
    levels = levels.clone()
    if at is not None:
        levels[at] += shift
    trials = [Trial(s, "none", edit) for s in samples]
    answers = [
        continuation(vlm, Trial(s, "blank"), text) for s, text in zip(samples, TARGETS, strict=True)
    ]
    return search._loss(vlm, trials, answers, picture, scale * levels + offset)


def test_the_loss_is_that_of_the_targets_as_responses(tiny, asked):
    shown = [Trial(Sample(s.id, s.query, GREY)) for s in asked]
    wanted = np.log(perplexity(tiny, shown, TARGETS)).mean()
    assert loss_of(tiny, asked, GREY).item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("tokens", ["all", "last", "image", "generated"])
def test_the_loss_is_under_the_edit_that_generation_has(tiny, asked, tokens, tmp_path):
    """Of all third tokens the one that greedy decoding takes is the likeliest under the edit."""
    edit, out = edit_of(3, tokens), tmp_path / "r.jsonl"
    shown = Trial(Sample("a", asked[0].query, GREY), "own", edit)
    generate(tiny, [shown], max_new_tokens=3, out=out)
    shared = {"model": tiny.fingerprint, "max_new_tokens": 3}
    answer = Responses(out, shared).get(shown.id).ids
    assert len(answer) == 3
    levels, scale, offset = search._readable(tiny, GREY)
    trial = Trial(asked[0], "none", edit)
    losses = [
        search._loss(tiny, [trial], [(*answer[:2], token)], GREY, scale * levels + offset).item()
        for token in [answer[2], *range(5, 60)]
    ]
    assert losses[0] == pytest.approx(min(losses))
    plain = Trial(asked[0], "none")
    unedited = search._loss(tiny, [plain], [answer], GREY, scale * levels + offset).item()
    assert abs(losses[0] - unedited) > 1e-3


def test_the_gradient_is_the_models(tiny, asked):
    """Against a finite difference, under an edit."""
    edit = edit_of(1, "last")
    levels, scale, offset = search._readable(tiny, GREY)
    levels.requires_grad_(True)
    trials = [Trial(s, "none", edit) for s in asked]
    answers = [
        continuation(tiny, Trial(s, "blank"), t) for s, t in zip(asked, TARGETS, strict=True)
    ]
    loss = search._loss(tiny, trials, answers, GREY, scale * levels + offset)
    (slope,) = torch.autograd.grad(loss, levels)
    at = tuple(int(i) for i in np.unravel_index(int(slope.abs().argmax()), slope.shape))
    ends = [loss_of(tiny, asked, GREY, edit, shift, at).item() for shift in (-2.0, 2.0)]
    assert (ends[1] - ends[0]) / 4 == pytest.approx(slope[at].item(), rel=0.05)


def text(samples, edit=None):
    return [Trial(sample, "none", edit) for sample in samples]


@pytest.mark.parametrize("edit", [None, edit_of(0, size=0.3)])
def test_the_targets_get_likelier(tiny, asked, edit):
    found = attack(tiny, text(asked, edit), TARGETS, GREY, steps=12, rows=4)
    before, after = (loss_of(tiny, asked, each, edit).item() for each in (GREY, found.image))
    assert after < before - 0.05
    assert found.losses[0] == pytest.approx(before, rel=1e-4)
    assert len(found.losses) == 12


def test_an_attack_that_knows_the_edit_is_another(tiny, asked):
    plain, knows = (
        attack(tiny, text(asked, edit), TARGETS, GREY, steps=4) for edit in (None, edit_of(0))
    )
    assert plain.losses[0] != pytest.approx(knows.losses[0], rel=1e-3)
    assert plain.image.tobytes() != knows.image.tobytes()


@pytest.mark.parametrize(("epsilon", "most"), [(3, 3), (255, 128)])
def test_pixels_stay_within_the_bound_and_go_to_it(tiny, asked, epsilon, most):
    found = attack(tiny, text(asked), TARGETS, GREY, epsilon=epsilon, steps=12)
    moved = np.abs(np.asarray(found.image, dtype=int) - 127)
    assert moved.max() == most
    assert found.image.mode == "RGB"


def test_it_is_the_same_again(tiny, asked):
    one, two = (attack(tiny, text(asked), TARGETS, GREY, steps=3, rows=2) for _ in range(2))
    assert one.image.tobytes() == two.image.tobytes()
    other = attack(tiny, text(asked), TARGETS, GREY, steps=3, rows=2, seed=1)
    assert other.losses != one.losses


def test_a_picture_of_another_size_is_searched_as_the_processor_sees_it(tiny, asked):
    start = Image.fromarray(np.arange(96 * 60 * 3, dtype=np.uint32).reshape(96, 60, 3).astype("u1"))
    found = attack(tiny, text(asked), TARGETS, start, epsilon=2, steps=2)
    assert found.image.size == (48, 48)
    seen, back = (search._processed(tiny, picture) for picture in (start, found.image))
    assert (seen - back).abs().max() < 2 * 3.1 / 255


def test_processors_without_a_plain_gradient_are_refused(families, asked):
    for name in ("llava-next", "qwen2.5-vl"):
        with pytest.raises(InputError, match="tiles or patches"):
            attack(families[name], text(asked), TARGETS, GREY, steps=1)
    with pytest.raises(InputError, match="sees no images"):
        attack(families["vicuna"], text(asked), TARGETS, GREY, steps=1)


def test_every_request_needs_a_target(tiny, asked):
    with pytest.raises(InputError, match=r"4 requests .* 1 targets"):
        attack(tiny, text(asked), ["Sure"], GREY)
    with pytest.raises(InputError, match="0 requests"):
        attack(tiny, [], [], GREY)


def test_masked_takes_the_squares_that_the_targets_need_most(tiny, asked):
    """Against each square's loss reckoned apart."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture = search._picture(search._readable(tiny, Image.fromarray(picture))[0])
    trials = [Trial(s, "none") for s in asked]
    found = np.asarray(search.masked(tiny, trials, TARGETS, picture)).astype(int)
    whole = np.asarray(picture).astype(int)
    side = whole.shape[0] // search.SIDE
    losses, grey = {}, set()
    for row in range(search.SIDE):
        for column in range(search.SIDE):
            at = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
            without = whole.copy()
            without[at] = search.GREY
            losses[row, column] = loss_of(tiny, asked, Image.fromarray(without.astype(np.uint8)))
            if (found[at] == search.GREY).all():
                grey.add((row, column))
            else:
                assert (found[at] == whole[at]).all()
    assert grey == {*sorted(losses, key=losses.get, reverse=True)[: search.MASKED]}


def test_adversarial_pairs_are_kept(tiny, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "STEPS", 2)
    pairs = search.adversarial_pairs(tiny, asked, tmp_path)
    assert len(pairs) == search.PICTURES
    for whole, masked in pairs:
        differ = np.any(np.asarray(whole) != np.asarray(masked), axis=-1).mean()
        assert 0 < differ <= search.MASKED / search.SIDE**2
    monkeypatch.setattr(search, "_loss", None)  # nothing is searched again
    again = search.adversarial_pairs(tiny, asked, tmp_path)
    assert [a.tobytes() for a, _ in again] == [a.tobytes() for a, _ in pairs]
    assert len(search.adversarial_pairs(tiny, asked, tmp_path / "none", dry=True)) == 1
    assert not (tmp_path / "none").exists()


def test_the_target_is_the_worlds_own_answer(asked):
    assert search.target_of(Sample("x", "How do I pick a lock?")) == "Sure, here is"


def test_a_processor_that_resizes_what_it_gave_is_refused(fresh, asked):
    """A plain picture would not show it: it looks alike however it is cropped."""
    reader = fresh.processor.image_processor
    size = reader.crop_size["height"]
    reader.size = {"shortest_edge": size + size // 6}
    for check in (
        lambda: search.check_searchable(fresh),
        lambda: attack(fresh, [Trial(asked[0], "none")], TARGETS[:1], GREY, steps=1),
    ):
        with pytest.raises(InputError, match="does more to a picture than to scale it"):
            check()
