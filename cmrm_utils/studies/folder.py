"""One folder a run: responses, tables, metrics, vectors, figures, and a manifest written last."""

import os
import platform
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from cmrm_utils.paths import ROOT
from cmrm_utils.store import check_same, read_json, replacing, write_json, writing


def versions() -> dict[str, str]:
    """The versions that numbers can depend on."""
    packages = ("torch", "transformers", "tokenizers", "numpy", "pillow", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


class Run:
    """The folder that the notebooks of one run share.

    Results of other versions of the packages are warned of, not refused; the manifests tell.

    Args:
        folder: of the run; relative to the repository, or to the folder ``CMRM_HOME`` if set.
        notebook: the name of the notebook that writes.
        shared: what all notebooks of a run must agree on (the model's fingerprint, the data).

    Raises:
        InputError: the folder holds results of another model or data, or cannot be written to.
    """

    def __init__(self, folder: str | Path, notebook: str, shared: Mapping[str, Any]) -> None:
        self.folder = Path(os.environ.get("CMRM_HOME", ROOT)) / folder
        self.notebook = notebook
        self.shared = dict(shared)
        self._written: list[str] = []
        settings = self.folder / "run.json"
        begun = read_json(settings) if settings.exists() else {}
        if begun:
            check_same(begun, self.shared, self.folder)
        else:
            write_json(settings, {**self.shared, "versions": versions()})
        self._begun_with = begun.get("versions", versions())
        changed = [
            f"{name} {self._begun_with.get(name)}, now {now}"
            for name, now in versions().items()
            if self._begun_with.get(name) != now
        ]
        if changed:
            warnings.warn(
                f"{self.folder} was begun with {'; '.join(changed)}: what is in it is reused",
                stacklevel=3,
            )
        with writing(self.manifest):
            self.manifest.unlink(missing_ok=True)

    @property
    def manifest(self) -> Path:
        """The file that proves that this notebook ran to its end."""
        return self.folder / "manifests" / f"{self.notebook}.json"

    @property
    def responses(self) -> Path:
        """The responses of all notebooks of the run."""
        return self.folder / "responses.jsonl"

    def _path(self, kind: str, name: str) -> Path:
        self._written.append(f"{kind}/{name}")
        return self.folder / kind / name

    def table(self, name: str, rows: pd.DataFrame) -> pd.DataFrame:
        """Write a table as Parquet and hand it back."""
        with replacing(self._path("tables", f"{name}.parquet")) as draft:
            rows.to_parquet(draft)
        return rows

    def metrics(self, values: Mapping[str, Any]) -> None:
        """Write the notebook's headline numbers as JSON."""
        write_json(self._path("metrics", f"{self.notebook}.json"), values)

    def figure(self, name: str, figure: Any) -> None:
        """Write a figure as PNG and SVG."""
        for kind in ("png", "svg"):
            with replacing(self._path("figures", f"{name}.{kind}")) as draft:
                figure.savefig(draft, format=kind)

    def finish(self, parameters: Mapping[str, Any]) -> None:
        """Write the manifest, last of all: parameters, versions, and the files written."""
        write_json(
            self.manifest,
            {
                "notebook": self.notebook,
                "shared": self.shared,
                "parameters": dict(parameters),
                "versions": versions(),
                "begun_with": self._begun_with,
                "files": sorted(set(self._written)),
            },
        )
