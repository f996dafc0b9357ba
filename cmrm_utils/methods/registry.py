"""Every method by its name in tables: what notebooks and the command line read.

A new method is a file beside this one, and a line here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cmrm_utils.errors import InputError, unknown
from cmrm_utils.methods import (
    addition,
    astra,
    cmrm,
    prompting,
    regap,
    safesteer,
    shiftdc,
    vlm_guard,
)
from cmrm_utils.methods.base import Method, Settings, at_alphas

METHODS: dict[str, Method] = {
    **cmrm.LEVELS,
    "ShiftDC": shiftdc.METHOD,
    "ASTRA": astra.METHOD,
    "SafeSteer": safesteer.METHOD,
    "VLM-Guard": vlm_guard.METHOD,
    "ReGap-inspired": regap.METHOD,
    "refusal addition": addition.METHOD,
    "safety prompt": prompting.SAFETY,
    "ECSO": prompting.LOOKING_AWAY,
}
"""The methods. The scale of their settings is that of ``smollm2-llava``."""


PUBLISHED: dict[str, Method] = {
    "CMRM, as published": cmrm.PUBLISHED,
    "ShiftDC, as published": shiftdc.PUBLISHED,
    "ASTRA, as published": astra.PUBLISHED,
}
"""Methods in their authors' one setting, where it differs from those tried."""


def with_settings(
    names: Sequence[str] = tuple(METHODS),
    *,
    alphas: Sequence[float] = cmrm.ALPHAS,
    grids: Mapping[str, Sequence[Settings]] | None = None,
) -> dict[str, Method]:
    """Methods of :data:`METHODS` with the settings to try.

    Args:
        names: of the methods.
        alphas: of CMRM at every level; 0, no edit, is left out.
        grids: settings by method, in the place of its own.

    Raises:
        InputError: a name that is none of them, or settings that tables could not tell apart.
    """
    grids = {**dict.fromkeys(cmrm.LEVELS, at_alphas(alphas)), **(grids or {})}
    for name in (*names, *grids):
        if name not in METHODS:
            raise unknown("no method", name, METHODS)
    for name, settings in grids.items():
        labels = [label(setting) for setting in settings]
        if twice := {one for one in labels if labels.count(one) > 1}:
            raise InputError(f"{name}: {', '.join(sorted(twice))} is among the settings twice")
    return {
        name: replace(METHODS[name], settings=grids.get(name, METHODS[name].settings))
        for name in names
    }


def label(setting: Settings) -> str:
    """A setting as tables name it; ``as is`` where there is nothing to set."""
    parts = (f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in setting.items())
    return ", ".join(parts) or "as is"
