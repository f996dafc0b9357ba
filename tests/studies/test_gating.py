"""Notebook 09: gates."""

from dataclasses import replace

import pytest

from cmrm_utils import CMRM
from cmrm_utils.studies import abilities, gating
from cmrm_utils.trials import Trial

pytestmark = pytest.mark.usefixtures("few_anchors")


def test_gates_are_on_for_what_must_be_refused(nb):
    """On the anchors that they were fitted on, where the probe cannot but tell them apart."""
    harmful, benign = (nb.samples("anchors", 6, task) for task in ("harmful", "benign"))
    on = gating.open_gates(nb, [*harmful, *benign])["text state, probe"]
    assert sum(on[s.id] for s in harmful) > len(harmful) / 2
    assert sum(on[s.id] for s in benign) < len(benign) / 2


def test_gates_are_off_without_an_image_and_told_the_truth(nb):
    samples = [*abilities.requests(nb, "validation", 3), *nb.questions("validation", 3)]
    bare = [replace(s, image=None) for s in samples]
    gates = gating.open_gates(nb, samples)
    fitted = {name for name, (_, how) in gating.GATES.items() if how in ("mean", "probe")}
    assert set(gates) == {gating.ALWAYS, gating.TOLD, *fitted}
    spoken = gating.open_gates(nb, [replace(s, world=False) for s in samples])
    assert set(spoken) == {gating.ALWAYS, gating.TOLD, *gating.GATES}
    assert len(gating.GATES) == 2 * len(fitted)
    assert gates[gating.TOLD] == {s.id: s.harmful for s in samples}
    assert all(gates[gating.ALWAYS].values())
    assert not any(any(on.values()) for on in gating.open_gates(nb, bare).values())
    assert len({tuple(spoken[name].values()) for name in gating.GATES}) > 1


def test_a_gated_edit_is_the_edit_or_none(nb):
    plain, vectors = gating.plain_trials(nb, "validation", 2), nb.anchors.shift()
    gates = gating.open_gates(nb, [trial.sample for trial in plain])
    ids = {}
    for trial in gating.curve_trials(nb, [0.0, 0.5], 2):
        if trial.edit is not None:
            method, alpha = trial.edit.settings["method"], trial.edit.settings["alpha"]
            assert alpha == 0.5
            on = gates[method][trial.sample.id]
            wanted = Trial(trial.sample, edit=CMRM(vectors, 0.5) if on else None)
            assert trial.id == wanted.id
            ids[method, trial.sample.id] = trial.id
    assert set(ids) == {(name, t.sample.id) for name in gates for t in plain}
    edited = Trial(plain[0].sample, edit=CMRM(vectors, 0.5))
    assert ids[gating.ALWAYS, plain[0].sample.id] == edited.id


def test_gates_on_the_test_split_at_their_own_alphas(nb, chosen):
    curve, strengths = gating.gate_curves(nb, chosen, [0.5], 2)
    assert set(zip(curve["method"], curve["alpha"], strict=True)) == {
        (name, alpha) for name in strengths for alpha in (0.0, 0.5)
    }
    strengths = {name: 0.1 * i for i, name in enumerate(strengths)}  # 0 is an alpha too
    found, errors, against = gating.gate_test(nb, strengths, 2)
    shown = found.drop_duplicates(["method", "alpha"]).set_index("method")["alpha"].to_dict()
    assert shown == pytest.approx({"never": 0.0, **strengths})
    wrong = errors.set_index(["method", "error"])["rate"]
    assert wrong[gating.ALWAYS, "misses"] == 0
    assert wrong[gating.ALWAYS, "false alarms, benign"] == 1
    assert wrong[gating.ALWAYS, "false alarms, questions"] == 1
    assert not wrong[gating.TOLD].any()
    assert set(against["method"]) == {"never", *strengths} - {gating.ALWAYS}
    assert {"refused", "unsafe", "neither", "benign answered"} <= set(against["measure"])
