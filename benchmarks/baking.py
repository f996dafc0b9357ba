"""What a baked organism does and what it costs, beside the hook and no edit.

``python -m benchmarks.baking`` writes ``benchmarks/baking.json`` and the table of docs/baking.md.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from benchmarks.report import Row, cost
from benchmarks.setting import Setting
from benchmarks.timing import Case, measure
from cmrm_utils import CMRM, VLM, Edit, apply, bake, extract_shift, generate, load_samples, load_vlm
from cmrm_utils.conditions import CONDITION_NAMES
from cmrm_utils.data.load import take
from cmrm_utils.jobs.publish import write_section
from cmrm_utils.judges.outcomes import judge
from cmrm_utils.paths import ROOT, STORED
from cmrm_utils.results.rates import averaged, measures
from cmrm_utils.results.responses import table
from cmrm_utils.results.text import percent_table
from cmrm_utils.sample import Sample
from cmrm_utils.store import read_csv, write_json
from cmrm_utils.studies.card import MAX_NEW_TOKENS
from cmrm_utils.studies.folder import versions
from cmrm_utils.studies.notebook import ANCHORS
from cmrm_utils.trials import grid

TITLE = "Baked and hooked"
RESULTS = ROOT / "benchmarks" / "baking.json"
PAGE = ROOT / "docs" / "baking.md"
PER_KIND = 100
ROUNDS, BATCH, NEW = 15, 32, 24


@dataclass(frozen=True)
class Baked:
    """The organism, dataset-level CMRM at its chosen alpha, and both as one checkpoint."""

    vlm: VLM
    edit: Edit
    alpha: float
    folder: Path


@contextmanager
def baked_organism() -> Iterator[Baked]:
    """The organism on the CPU and its baked folder, which is removed afterwards."""
    vlm = load_vlm("organism", device="cpu")
    anchors = take(load_samples("organism", "anchors"), ANCHORS, "harmful")
    vectors = extract_shift(vlm, anchors, meaningless="blank")
    alpha = chosen_alpha()
    edit = CMRM(vectors, alpha)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "baked"
        bake(vlm, edit, folder, vectors=vectors)
        yield Baked(vlm, edit, alpha, folder)


def chosen_alpha() -> float:
    """The alpha of dataset-level CMRM that the stored choices have for the organism."""
    rows = read_csv(STORED / "alphas_by_model.csv").set_index(["model", "method"])
    return float(rows.loc[("organism", "CMRM dataset"), "alpha"])


def _answers(
    vlm: VLM, samples: list[Sample], questions: list[Sample], edit: Edit | None
) -> pd.DataFrame:
    trials = grid(samples, images=("none", "own"), edits=[edit]) + grid(questions, edits=[edit])
    responses = generate(vlm, trials, max_new_tokens=MAX_NEW_TOKENS)
    return judge(table(trials, responses)).assign(response=responses)


def effect(organism: Baked) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rates on the validation split without an edit, hooked and baked.

    Returns:
        Rates by ``measure, image, setting``, and in how many of all responses baked and hooked
        differ.
    """
    every = load_samples("organism", "validation")
    samples = take(every, PER_KIND, "harmful", "benign")
    questions = take(every, PER_KIND, "visual")
    baked = load_vlm(organism.folder, device="cpu")
    settings = {
        "unedited": _answers(organism.vlm, samples, questions, None),
        "hooked": _answers(organism.vlm, samples, questions, organism.edit),
        "baked": _answers(baked, samples, questions, None),
    }
    differ = int((settings["hooked"]["response"] != settings["baked"]["response"]).sum())
    rows = pd.concat([part.assign(setting=name) for name, part in settings.items()])
    rows = averaged(rows)
    found = measures(rows, ["image", "setting"]).sort_values(
        "image", ascending=False, key=lambda images: images == "none", kind="stable"
    )
    return found, {"differ": differ, "responses": len(settings["baked"])}


@torch.inference_mode()
def rounding(organism: Baked) -> dict[str, float]:
    """Largest difference of the first answer token's logits from the hook's, by biases' precision.

    Weights are float32 throughout (and lie in the folder as float16, which holds them exactly).
    """
    samples = take(load_samples("organism", "validation"), 10, "harmful", "benign", "visual")
    inputs = organism.vlm.inputs([s.prompt for s in samples], [s.load_image() for s in samples])

    def logits(model: Any) -> Tensor:
        return model(**inputs, position_ids=organism.vlm.positions(inputs), logits_to_keep=1).logits

    with apply(organism.vlm, organism.edit):
        hooked = logits(organism.vlm.model)
    found = {"no edit": float((logits(organism.vlm.model) - hooked).abs().max())}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = AutoModelForImageTextToText.from_pretrained(organism.folder).eval()
        for layer in model.model.language_model.layers:
            bias = layer.mlp.down_proj.bias
            bias.copy_(bias.to(dtype).float())
        found[str(dtype).removeprefix("torch.")] = float((logits(model) - hooked).abs().max())
    return found


def run(_setting: Setting) -> list[Row]:
    """Rows of the table: generation by transformers' ``generate``, plain, hooked and baked."""
    with baked_organism() as organism:
        vlm = organism.vlm
        samples = take(load_samples("organism", "test"), BATCH, "benign")[:BATCH]
        inputs = vlm.inputs([s.prompt for s in samples], [s.load_image() for s in samples])
        baked = AutoModelForImageTextToText.from_pretrained(organism.folder).eval()

        def respond(model: Any, edit: Edit | None) -> Tensor:
            with torch.inference_mode(), apply(vlm, edit):
                return model.generate(
                    **inputs, min_new_tokens=NEW, max_new_tokens=NEW, do_sample=False
                )

        cases = {
            "plain": Case(respond, lambda: (vlm.model, None)),
            "hook": Case(respond, lambda: (vlm.model, organism.edit)),
            "baked": Case(respond, lambda: (baked, None)),
        }
        timings = measure(cases, ROUNDS)
    what = f"organism, {BATCH} prompts with images, {NEW} tokens"
    return [
        cost(timings, "plain", what=what, ours="hook"),
        cost(timings, "plain", what=what, ours="baked"),
        cost(timings, "hook", what=what, ours="baked"),
    ]


def setting_text(_setting: Setting) -> str:
    """What is measured."""
    return (
        "The organism without an edit, with dataset-level CMRM as hooks, and with the same edit "
        "baked into its biases; responses of one length, in transformers' own `generate`, "
        f"{ROUNDS} rounds."
    )


def text(results: dict[str, Any]) -> str:
    """The page's table, and what is beside it."""
    rows = pd.DataFrame(results["effect"])
    rows["what"] = rows["image"].map(CONDITION_NAMES) + ": " + rows["measure"]
    wide = percent_table(rows, "what", "setting").reset_index()
    wide = wide.rename(columns={"what": ""})
    lines = [list(wide.columns), ["---"] * len(wide.columns), *wide.values.tolist()]
    cells = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    logits = results["logits"]
    return (
        f"{cells}\nAlpha {results['alpha']:g}. Hooked and baked differ in {results['differ']} of "
        f"{results['responses']} responses, and in logits by at most {logits['float32']:.1g}; "
        f"had the biases been rounded, by {logits['float16']:.1g} (float16) or "
        f"{logits['bfloat16']:.1g} (bfloat16). The edit itself moves logits by up to "
        f"{logits['no edit']:.2g}.\n"
    )


def main() -> None:
    """Measure the effect, keep it, and put it into the page."""
    with baked_organism() as organism:
        rows, counts = effect(organism)
        results = {
            "alpha": organism.alpha,
            "effect": rows.to_dict("records"),
            "logits": rounding(organism),
            "versions": versions(),
            **counts,
        }
    write_json(RESULTS, results)
    write_page()
    print(text(json.loads(RESULTS.read_text())))


def write_page() -> None:
    """Put the table of ``baking.json`` into the page, between its two marks.

    Raises:
        InputError: the marks are not there.
    """
    write_section(PAGE, "baking", text(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
