"""How Sphinx builds the site: README, pages of docs/, and the notebooks as they are committed.

The source folder is the repository (``sphinx-build -c docs . build/docs``), so that links between
README, pages and notebooks are the same on the site as in the repository.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

project = "CMRM workbook"
copyright = "the workbook's authors, MIT licence"
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "docs/**",
    "notebooks/*.ipynb",
    "benchmarks/RESULTS.md",
    "cmrm_utils/**/README.md",
]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # the page of a notebook needs no network
nb_merge_streams = True
myst_heading_anchors = 4
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]

autodoc_typehints = "description"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = "CMRM workbook"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["site.css"]
