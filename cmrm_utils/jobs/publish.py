"""What of a run is kept in the repository."""

from pathlib import Path
from typing import TYPE_CHECKING

from cmrm_utils.errors import InputError
from cmrm_utils.store import read_json, read_table

if TYPE_CHECKING:
    import pandas as pd


STORED_TABLES = {
    "full": {"full_curves": "04_curves", "full_kinds": "04_test", "full_test": "05_test"},
    "research-full": {
        "research_comparison": "06_comparison",
        "research_paired": "06_paired",
        "research_parts": "06_parts",
        "research_directions": "06_directions",
        "research_cosines": "06_cosines",
        "research_full": "07_full",
        "research_layers": "07_layers",
        "research_tokens": "07_tokens",
        "research_heads_curve": "07_heads_curve",
        "research_mlp": "07_mlp",
        "research_rank": "07_rank",
        "research_anchors": "08_anchors",
        "research_beyond": "08_beyond",
        "research_perturbed": "08_perturbed",
        "research_adversarial": "08_adversarial",
        "research_gate": "08_gate",
    },
    "architectures": {
        "architectures_curves": "04_curves",
        "architectures_doses": "04_alpha_table",
        "architectures_cosines": "02_refusal_cosine",
    },
    "extended": {"extended_answers": "08_extended"},
    "variants": {
        "variants_comparison": "06_comparison",
        "variants_parts": "06_parts",
    },
}
"""What the appendix shows of a profile's run of several models: a name, and the run's table."""


def stored_table(folder: Path, name: str) -> "pd.DataFrame":
    """A table of a run, with columns that say of which model and by which rule.

    Raises:
        InputError: the notebook that makes it has not run to its end.
    """
    from cmrm_utils.studies.selection import RULE

    number = name.partition("_")[0]
    # A notebook's manifest is written last: without it the table may be of an earlier try.
    if not [read_json(each) for each in (folder / "manifests").glob(f"{number}_*.json")]:
        raise InputError(f"{folder}: notebook {number} has not run to its end; run it again")
    rows = read_table(folder / "tables" / f"{name}.parquet")
    # A model in a folder is named as its run is: stored tables hold no paths of a machine.
    fingerprint = read_json(folder / "run.json")["fingerprint"]
    return rows.assign(model=folder.name, fingerprint=fingerprint, rule=RULE)


def beside_others(path: Path, made: "pd.DataFrame") -> "pd.DataFrame":
    """Rows made, and those that the stored table at the path has of other models, by model."""
    import pandas as pd

    parts = [made]
    if path.exists():
        old = pd.read_csv(path, keep_default_na=False, na_values=[""])
        parts.append(old[~old["model"].isin(made["model"])])
    return pd.concat(parts).sort_values("model", kind="stable")
