"""What is measured in natural language: openers and limits, from the model's own text."""

import json
from math import log

import pandas as pd
import pytest
import torch

from cmrm_utils import CMRM, InputError, Trial, extract_shift, first_logits, load_vlm
from cmrm_utils.engine.loops import respond
from cmrm_utils.judges.fluency import Limits, perplexity
from cmrm_utils.studies import yardstick
from cmrm_utils.studies.notebook import Notebook


def refusal(text):
    """A third of all texts: a tiny model refuses nothing in words."""
    return sum(text.encode()) % 3 == 0


@pytest.fixture
def nb(family_folders, tmp_path, monkeypatch):
    """A run on ``everyday`` with a tiny model; every third of its responses is called a refusal."""
    monkeypatch.setattr(yardstick, "REQUESTS", 3)
    monkeypatch.setattr(yardstick, "is_refusal", refusal)
    monkeypatch.setattr("cmrm_utils.judges.openers.LEAST", 1)
    monkeypatch.setattr("cmrm_utils.judges.openers.PURE", 0.1)
    folder = family_folders["llava"]
    return Notebook.open(
        "01", model=str(folder), data="everyday", out=str(tmp_path / "run"), max_new_tokens=4
    )


def trials_of(nb):
    samples = nb.samples("validation", 2, "harmful", "benign") + nb.questions("validation", 2)
    return [Trial(sample, image) for sample in samples for image in ("none", "own")]


def test_log_odds_are_those_of_a_forward_pass(nb):
    trials = trials_of(nb)
    rows = nb.ask(trials)
    chances = first_logits(nb.vlm, trials).softmax(-1)[:, list(nb.yardstick.openers)].sum(-1)
    assert nb.yardstick.openers
    wanted = torch.log(chances / (1 - chances))
    torch.testing.assert_close(
        torch.tensor(rows["log_odds"].tolist()), wanted, atol=1e-3, rtol=1e-3
    )


def test_log_odds_follow_an_edit(nb):
    shift = extract_shift(nb.vlm, nb.samples("anchors", 4, "harmful"))
    plain = [Trial(sample, "own") for sample in nb.samples("validation", 2, "harmful")]
    edited = [Trial(t.sample, "own", CMRM(shift, 0.5)) for t in plain]
    rows = nb.ask([*plain, *edited])
    assert (rows["log_odds"][: len(plain)].to_numpy() != rows["log_odds"][len(plain) :]).all()


def test_a_broken_response_is_neither_refused_nor_an_answer(nb):
    rows = nb.ask(trials_of(nb))
    nb.yardstick.limits = Limits(perplexity=0.0, repeated=1.0)
    strict = nb.ask(trials_of(nb))
    requests = strict["task"].isin(["harmful", "benign"])
    scored = requests & ~strict["response"].map(refusal)
    assert scored.any()
    assert (strict["outcome"][scored] == "neither").all()
    assert (strict["keyword"] == rows["keyword"]).all()
    assert not strict["broken"][~requests].any()


def test_another_models_responses_are_judged_apart(nb):
    """The same trials, other words: neither log-odds nor scores of the run's own model count."""
    other = load_vlm(nb.vlm.name)
    with torch.no_grad():
        other.layers[0].mlp.up_proj.weight.mul_(-3.0)
    trials = nb.plainly(nb.samples("validation", 2, "harmful", "benign"))
    own = nb.ask(trials)
    answers = respond(other, trials, max_new_tokens=4, openers=nb.openers)
    rows = nb.judged(trials, answers, other)
    assert rows["log_odds"].tolist() == [answer.log_odds for answer in answers]
    assert (rows["log_odds"] != own["log_odds"]).all()
    files = sorted(path.name for path in nb.run.folder.rglob("scores*.jsonl"))
    assert files == [f"scores-{other.fingerprint}.jsonl", "scores.jsonl"]
    scored = [json.loads(line) for line in next(nb.run.folder.rglob(files[0])).open()][1:]
    texts = {t.id: answer.text for t, answer in zip(trials, answers, strict=True)}
    by_id = {trial.id: trial for trial in trials}
    assert scored
    for row in scored:
        plain = [Trial(by_id[row["id"]].sample, "none")]
        wanted = perplexity(nb.vlm, plain, [texts[row["id"]]])[0]
        assert row["perplexity"] == pytest.approx(wanted, rel=1e-3)


def test_it_is_found_once_and_read_again(nb, tmp_path, monkeypatch):
    first, rows = nb.yardstick, nb.ask(trials_of(nb))
    monkeypatch.setattr(yardstick, "perplexity", pytest.fail)
    again = Notebook.open(
        "02", model=nb.run.shared["model"], data="everyday", out=str(nb.run.folder),
        max_new_tokens=4,
    )  # fmt: skip
    assert (again.yardstick.openers, again.yardstick.limits) == (first.openers, first.limits)
    pd.testing.assert_frame_equal(again.ask(trials_of(nb)), rows)
    header = json.loads((nb.run.responses).read_text().splitlines()[0])
    assert header["openers"] == sorted(first.openers)


def test_the_invented_world_needs_none(family_folders, tmp_path):
    nb = Notebook.open(
        "01", model=str(family_folders["llava"]), data="organism", out=str(tmp_path / "run"),
        max_new_tokens=4,
    )  # fmt: skip
    assert nb.yardstick is None
    assert "log_odds" not in nb.ask(nb.plainly(nb.samples("validation", 1, "harmful")))


def test_a_model_that_refuses_nothing_has_no_log_odds(nb, monkeypatch, capsys):
    monkeypatch.setattr(yardstick, "is_refusal", lambda text: False)
    assert nb.ask(trials_of(nb))["log_odds"].isna().all()
    assert "this model has no refusal log-odds" in capsys.readouterr().out


def test_a_model_that_refuses_everything_has_no_limits(nb, monkeypatch):
    monkeypatch.setattr(yardstick, "is_refusal", lambda text: True)
    assert not nb.ask(trials_of(nb))["broken"].any()
    assert not nb.yardstick.limits.broken(1e9, "no no no no no no")


def test_limits_leave_room_above_the_models_own_answers():
    limits = Limits.of([1.0, 2.0, float("nan"), 4.0], ["one two three four five"] * 4)
    assert limits.perplexity == pytest.approx(2 * 3.96)
    assert limits.repeated == pytest.approx(0.1)
    assert not limits.broken(4.0, "one two three four five")
    assert limits.broken(8.0, "one two three four five")
    assert limits.broken(1.0, "no no no no no no")
    assert limits.broken(1.0, " ")


def test_a_log_odds_of_zero_is_a_chance_of_one_half():
    from cmrm_utils.engine.batch import log_odds

    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [log(3.0), 0.0, 0.0, float("-inf")]])
    found = log_odds(logits, [0, 1])
    torch.testing.assert_close(found, torch.tensor([0.0, log(4.0)]))


def test_one_that_was_found_on_other_requests_is_refused(nb, monkeypatch):
    openers = nb.yardstick.openers
    path = nb.run.folder / "yardstick" / "yardstick.json"
    kept = json.loads(path.read_text())
    monkeypatch.setattr(yardstick, "REQUESTS", 2)
    del nb.yardstick
    with pytest.raises(InputError, match=r"yardstick\.json was made with requests"):
        _ = nb.yardstick
    del kept["requests"]  # as earlier versions left it
    path.write_text(json.dumps(kept))
    assert nb.yardstick.openers == openers
