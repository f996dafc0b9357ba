"""One function a figure, fed with tables, never with models.

Every figure has a white ground of its own (so it reads in print and on a dark page), Okabe and
Ito's colour-blind safe colours, and the same colour for the same condition everywhere.
"""

from cmrm_utils.results.plots.bars import control_bars, outcome_bars, rate_bars
from cmrm_utils.results.plots.images import pictures, prompts
from cmrm_utils.results.plots.lines import (
    alpha_curves,
    anchor_lines,
    binned_rates,
    count_curves,
    layer_lines,
)
from cmrm_utils.results.plots.maps import heat_map, rate_map, state_maps
from cmrm_utils.results.plots.points import (
    defence_points,
    dot_panels,
    head_ranking,
    pareto,
    scatter_panels,
)
from cmrm_utils.results.plots.style import (
    CONTROL_COLOURS,
    MARKERS,
    MEASURE_COLOURS,
    OUTCOME_COLOURS,
    SETTING_COLOURS,
    style,
)

__all__ = [
    "CONTROL_COLOURS",
    "MARKERS",
    "MEASURE_COLOURS",
    "OUTCOME_COLOURS",
    "SETTING_COLOURS",
    "alpha_curves",
    "anchor_lines",
    "binned_rates",
    "control_bars",
    "count_curves",
    "defence_points",
    "dot_panels",
    "head_ranking",
    "heat_map",
    "layer_lines",
    "outcome_bars",
    "pareto",
    "pictures",
    "prompts",
    "rate_bars",
    "rate_map",
    "scatter_panels",
    "state_maps",
    "style",
]
