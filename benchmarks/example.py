"""The README's example: how the model's answers to a mild request and to a question begin.

``python -m benchmarks.example`` asks the model, writes ``benchmarks/example.json``, and puts the
table into the README. The request was fixed before any answer to it was seen; the question is the
test split's first about a picture.
"""

from typing import Any

import pandas as pd

from cmrm_utils import CMRM, Edit, Trial, extract_shift, generate, load_samples, load_vlm
from cmrm_utils.data.load import take
from cmrm_utils.jobs.publish import write_section
from cmrm_utils.paths import ROOT, STORED
from cmrm_utils.results.text import markdown_table
from cmrm_utils.store import read_csv, read_json, write_json
from cmrm_utils.studies.notebook import ANCHORS

RESULTS = ROOT / "benchmarks" / "example.json"
README = ROOT / "README.md"
MODEL, SAMPLE = "smollm2-llava", "test/harmful/trains-and-buses-7"
BESIDE = "beside a picture"
STRONGEST = 0.3
"""The largest alpha that the run behind the README's table tried."""

WORDS = 8
"""The most words of an answer that are kept."""


def chosen_alpha() -> float:
    """The alpha of dataset-level CMRM that the stored run chose for the model."""
    rows = read_csv(STORED / "smollm2_test.csv")
    here = (rows["model"] == MODEL) & (rows["setting"] == "CMRM dataset")
    return float(rows.loc[here, "alpha"].iloc[0])


def ask() -> dict[str, Any]:
    """How the model's answers begin: as text, beside its picture, and with CMRM at two alphas."""
    vlm = load_vlm(MODEL, device="cpu")
    sample = next(s for s in load_samples("everyday", "test") if s.id == SAMPLE)
    anchors = take(load_samples("everyday", "anchors"), ANCHORS, "harmful")
    vectors = extract_shift(vlm, anchors, meaningless="blank")
    question = take(load_samples("everyday", "test"), 1, "visual")[0]
    asked: dict[str, tuple[str, Edit | None]] = {"as text": ("none", None), BESIDE: ("own", None)}
    for alpha in (chosen_alpha(), STRONGEST):
        asked[f"{BESIDE}, CMRM at alpha {alpha:g}"] = "own", CMRM(vectors, alpha)
    trials = [Trial(each, *how) for each in (sample, question) for how in asked.values()]
    answers = [beginning(text) for text in generate(vlm, trials, max_new_tokens=24)]
    return {
        "model": vlm.fingerprint,
        "request": sample.query,
        "question": question.query,
        "asked": list(asked),
        "of the request": answers[: len(asked)],
        "of the question": answers[len(asked) :],
    }


def beginning(text: str) -> str:
    """The first words of an answer, with an ellipsis where there are more."""
    words = text.split()
    return " ".join(words[:WORDS]) + (" …" if len(words) > WORDS else "")


def text(results: dict[str, Any]) -> str:
    """The README's example: the two questions, and a table of how their answers begin."""
    columns = {
        "": results["asked"],
        "the request": results["of the request"],
        "the question": results["of the question"],
    }
    return (
        f"Request: *{results['request']}*\n"
        f"Question: *{results['question']}*\n\n{markdown_table(pd.DataFrame(columns))}"
    )


def main() -> None:
    """Ask, keep how the answers begin, and put it into the README."""
    write_json(RESULTS, ask())
    results = read_json(RESULTS)
    print(text(results))
    write_section(README, "example", text(results))


if __name__ == "__main__":
    main()
