"""One function per figure, fed with tables, never with models."""

# ruff: noqa: F401
# These names are what notebooks call.
from cmrm_utils.conditions import CONDITION_COLOURS, CONDITION_NAMES
from cmrm_utils.results.plots.bars import outcome_bars, rate_bars
from cmrm_utils.results.plots.dials import refusal_dial
from cmrm_utils.results.plots.images import pictures, prompts
from cmrm_utils.results.plots.lines import (
    alpha_curves,
    anchor_lines,
    layer_lines,
)
from cmrm_utils.results.plots.maps import head_ranking, state_maps
from cmrm_utils.results.plots.points import (
    against,
    change_panels,
    defence_points,
    dot_panels,
    pareto,
)
from cmrm_utils.results.plots.style import MEASURE_COLOURS, OUTCOME_COLOURS, colour, style, titled
