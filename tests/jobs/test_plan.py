"""What a run will cost."""

import pytest
from shard_work import PARAMETERS, work

from cmrm_utils.engine.memory import token_bytes
from cmrm_utils.errors import InputError
from cmrm_utils.jobs.plan import gigabytes, plan, prompt_tokens
from cmrm_utils.jobs.shards import merge
from cmrm_utils.trials import grid


@pytest.fixture
def experiments(family_folders):
    parameters = {**PARAMETERS, "model": str(family_folders["llava"])}
    return [(name, parameters) for name in ("01", "03", "04", "05")]


def test_counts_what_a_run_asks_for(experiments, tmp_path):
    rows = plan(experiments, probe=0)
    work(tmp_path, experiments[0][1], 1, 1)
    *surely, last = rows["trials"]
    made = merge(tmp_path)  # of the last list the less, the more methods' chosen alpha is 0
    assert sum(surely) < made <= sum(surely) + last
    assert (rows["response tokens"] == rows["trials"] * 4).all()
    assert (rows["GB"] > 0).all()
    assert (rows["computed"] <= rows["prompt tokens"]).all()
    assert rows["notebook"].tolist() == ["01", "03", "04", "04"]


def test_notebooks_that_ask_nothing_are_named(experiments):
    with pytest.raises(InputError, match="ask the model nothing"):
        plan([("02", experiments[0][1])], probe=0)


def test_a_probe_gives_hours(experiments):
    rows = plan(experiments[:1], probe=4)
    wanted = rows["seconds a trial"] * rows["trials"] / 3600
    assert rows["hours"].tolist() == pytest.approx(wanted.tolist())
    assert (rows["hours"] > 0).all()


def test_prompt_tokens(tiny, samples):
    trials = grid([s for s in samples if s.harmful][:3], images=["blank", "none"])
    lengths = tiny.inputs([t.text for t in trials], [t.load_image() for t in trials])
    whole, computed, longest = prompt_tokens(tiny, [*trials, *trials])
    assert longest == lengths["input_ids"].shape[1]
    assert whole == int(lengths["attention_mask"].sum())
    assert whole - computed >= 2 * len(tiny.encode(trials[0].load_image()).features)


def test_memory_is_that_of_the_weights_and_of_a_full_batch(tiny, monkeypatch):
    weights = sum(each.numel() * each.element_size() for each in tiny.model.parameters())
    monkeypatch.setattr(tiny, "batch_size", 8)
    rows = gigabytes(tiny, 100) - gigabytes(tiny, 0)
    assert weights <= gigabytes(tiny, 0) * 1e9 <= 1.1 * weights  # and its buffers
    assert rows == pytest.approx(800 * token_bytes(tiny) / 1e9)
