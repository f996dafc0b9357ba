from dataclasses import replace

import pytest
import torch
from conftest import edit_of

from cmrm_utils import InputError
from cmrm_utils.methods.registry import METHODS
from cmrm_utils.results import plots
from cmrm_utils.store import Response
from cmrm_utils.studies import playground
from cmrm_utils.studies.controls import Controls
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.playground import Question


@pytest.fixture(scope="module")
def nb(family_folders, tmp_path_factory):
    model, out = str(family_folders["llava"]), tmp_path_factory.mktemp("run")
    return Notebook.open("00_x", model=model, data="organism", out=out, max_new_tokens=4)


@pytest.fixture(scope="module")
def question(nb):
    return Question("How do I xylo a kettle?", playground.pictures(nb)[0])


def test_pictures_differ(nb):
    shown = playground.pictures(nb)
    assert len({sample.caption for sample in shown}) == len(shown) == 4


@pytest.mark.parametrize("method", [name for name in METHODS if name != "ASTRA"])
def test_every_method_can_be_played_with_and_nothing_typed_is_kept(nb, question, method):
    setting = METHODS[method].settings[-1]
    chosen = replace(question, method=method, setting=setting, layers=(0, 1))
    before, after = playground.compare(nb, chosen, longest=4)
    assert before.trial.edit is None
    assert method in after.name
    assert sum(share for _, share in before.likeliest) <= 1.001
    if edit := after.trial.active_edit:
        assert not edit.added[2:].any()
    files = [path for path in nb.run.folder.rglob("*") if path.is_file()]
    kept = b"".join(path.read_bytes() for path in files)
    assert b"xylo" not in kept
    assert before.trial.id.encode() not in kept  # a response is kept under its trial's id


def test_alpha_0_is_no_edit(nb, question):
    before, after = playground.compare(nb, replace(question, setting={"alpha": 0.0}), longest=4)
    assert before.response == after.response
    assert "No hidden state is edited" in playground.prompt((before, after)).data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request": "  "}, "the request is empty"),
        ({"method": "CMRN sample"}, "no method 'CMRN sample'.*CMRM sample"),
        ({"layers": (1, 3)}, "layers 1 to 3 are no part of 0 to 2"),
        ({"picture": None}, "no image of its own"),
        ({"condition": "caption", "picture": None}, "no caption"),
    ],
)
def test_bad_questions_are_named(nb, question, change, message):
    with pytest.raises(InputError, match=message):
        playground.compare(nb, replace(question, **change), longest=4)


def test_layers_bound_what_is_added_and_what_is_projected():
    edit = playground.at_layers(edit_of(0, take_out=2), 0, 0)
    assert edit.add[0].any()
    assert edit.project[0].any()
    assert not edit.add[1:].any()
    assert not edit.project[1:].any()
    assert torch.equal(edit.add[0], edit_of(0, take_out=2).add[0])


def test_tokens_in_colour_are_those_that_the_edit_touches(nb, question):
    _, everywhere = playground.compare(nb, question, longest=4)
    assert all(hit for _, hit in everywhere.tokens)
    last = replace(question, method="ShiftDC", setting=METHODS["ShiftDC"].settings[-1])
    pair = playground.compare(nb, last, longest=4)
    edit = pair[1].trial.active_edit
    assert edit.tokens in ("last", "last prompt")
    assert [hit for _, hit in pair[1].tokens] == [False] * (len(pair[1].tokens) - 1) + [True]
    assert playground.prompt(pair).data.count("<mark") == 1


def test_views_show_text_as_text(nb, question):
    pair = playground.compare(nb, replace(question, request="<script>x</script>"), longest=4)
    evil = tuple(replace(one, response=Response("<b>I</b> " * 9, (1,), True, 1.0)) for one in pair)
    answers, dial, words, prompt = playground.views(evil, words=8)[1:]
    assert answers.data.count("&lt;b&gt;I&lt;/b&gt;") == 16
    assert answers.data.count("…") == 2
    assert "<script" not in answers.data + words.data + prompt.data
    assert dial.alt == "log-odds of a refusal: +1.00 before, +1.00 after"
    assert "No dial" in playground.dial(pair).data


def test_a_needle_points_to_refusals_where_they_are_likelier():
    axis = plots.refusal_dial({"before": -99.0, "after": 4.0}).axes[0]
    (left, low), (right, _) = (line.get_xydata()[1] for line in axis.lines[:2])
    assert left < 0 < right
    assert low == pytest.approx(0)
    assert "before: -99.00" in axis.lines[0].get_label()


def test_excerpts_are_short(nb, question):
    rows = playground.excerpts(nb, question, [0.5], words=2)
    assert rows["alpha"].tolist() == [0.0, 0.5] * 3
    assert rows["excerpt"].str.split().map(len).max() <= 3  # with the ellipsis
    assert rows.loc[rows["alpha"] == 0, "excerpt"].nunique() == 1


def test_controls_ask_what_they_show(nb, question):
    controls = Controls(nb, replace(question, setting={"alpha": 0.3}))
    assert controls.question.setting == {"alpha": 0.3}
    assert controls.question.layers is None
    controls._method.value = "VLM-Guard"
    assert controls.question.setting == METHODS["VLM-Guard"].settings[0]
    controls._take({"new": [{"name": "a<b.png", "content": memoryview(b"none")}]})
    assert controls._status.value == "a&lt;b.png is no picture that can be read."
