"""The controls of notebook 00: widgets, and the answers under them, asked anew when one moves."""

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
from IPython.display import display
from markupsafe import escape

from cmrm_utils.conditions import IN_WORDS, NOISES, RECORDS
from cmrm_utils.errors import InputError
from cmrm_utils.methods.base import Settings
from cmrm_utils.methods.registry import METHODS, label
from cmrm_utils.sample import Sample, decode
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.playground import Question, compare, pictures, views

ELSEWHERE = "Run this notebook in JupyterLab: the controls stand here."
"""What is shown in the controls' place where no widget can be."""


class Controls:
    """Widgets for a question, over the views of both answers.

    Args:
        nb: the notebook.
        question: where the widgets stand at first; its method has an alpha.

    Attributes:
        box: all of it, as one widget.
    """

    def __init__(self, nb: Notebook, question: Question) -> None:
        self._nb, last = nb, len(nb.vlm.layers) - 1
        sees = nb.vlm.sees_images
        samples = pictures(nb) if sees else []
        conditions = [
            (record.label, key)
            for key, record in RECORDS.items()
            if key not in NOISES and (sees or key in IN_WORDS)
        ]
        first, whole = question.layers or (0, last), {"min": 0, "max": last}
        named = [(sample.caption or sample.id, sample) for sample in samples]
        self._request = _widget(widgets.Text, "request", question.request)
        self._picture = _widget(
            widgets.Dropdown, "picture", None, options=named or [("none", None)]
        )
        self._condition = _widget(
            widgets.Dropdown, "shown as", question.condition, options=conditions
        )
        self._method = _widget(widgets.Dropdown, "method", question.method, options=list(METHODS))
        self._layers = _widget(widgets.IntRangeSlider, "layers", first, **whole)
        self._settings = {name: _setting(method.settings) for name, method in METHODS.items()}
        self._settings[question.method].value = question.setting["alpha"]
        self._file = widgets.FileUpload(accept="image/*", description="own file")
        self._strength, self._status, self._views = widgets.Box(), widgets.HTML(), widgets.Output()
        controls = [self._request, widgets.HBox([self._picture, self._file]), self._condition]
        controls += [self._method, self._strength, self._layers, self._status, self._views]
        self.box = widgets.VBox(controls)
        self._file.observe(self._take, "value")
        moving = [self._request, self._picture, self._condition, self._method, self._layers]
        for widget in (*moving, *self._settings.values()):
            widget.observe(self._ask, "value")
        self._ask()

    @property
    def question(self) -> Question:
        """What the widgets ask."""
        setting, layers = self._settings[self._method.value].value, self._layers.value
        return Question(
            self._request.value,
            self._picture.value,
            self._condition.value,
            self._method.value,
            {"alpha": setting} if isinstance(setting, float) else setting,
            None if layers == (self._layers.min, self._layers.max) else layers,
        )

    def show(self) -> None:
        """Display the controls; as one line where there is no screen."""
        display({**self.box._repr_mimebundle_(), "text/plain": ELSEWHERE}, raw=True)

    def _ask(self, _change: Any = None) -> None:
        """Ask the question anew, and show what comes of it."""
        self._strength.children = [self._settings[self._method.value]]
        self._status.value = "Asking the model …"
        # Not captured: programs that execute notebooks can wait for ever on a capture.
        fresh = widgets.Output()
        try:
            for view in views(compare(self._nb, self.question)):
                fresh.append_display_data(view)
        except InputError as error:
            fresh.append_stdout(f"{error}\n")
        self._views.outputs = fresh.outputs
        self._status.value = "Ready."

    def _take(self, change: Any) -> None:
        """Choose the picture of a file that was just chosen."""
        for file in change["new"]:
            content = bytes(file["content"])
            try:
                decode(content)
            except ValueError:
                self._status.value = escape(f"{file['name']} is no picture that can be read.")
                return
            sample = Sample(file["name"], "What is in the picture?", content)
            self._picture.options = [*self._picture.options, (file["name"], sample)]
            self._picture.value = sample


def _widget(kind: Any, name: str, value: Any, **options: Any) -> Any:
    """A widget as wide as the others, which reports a value once it is chosen."""
    if kind is not widgets.Dropdown:
        options["continuous_update"] = False
    if value is not None:
        options["value"] = value
    layout = {"width": "36em"}
    return kind(description=name, layout=layout, style={"description_width": "6em"}, **options)


def _setting(settings: Sequence[Settings]) -> Any:
    """What sets a method: a slider for an alpha alone, else a choice among its settings."""
    if set(settings[0]) == {"alpha"}:
        return _widget(widgets.FloatSlider, "alpha", 0.1, min=0.0, max=1.0, step=0.01)
    return _widget(
        widgets.Dropdown, "setting", None, options=[(label(each), each) for each in settings]
    )
