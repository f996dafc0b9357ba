"""The examples in the docstrings of what a user meets first."""

import doctest

import pytest
import torch

import cmrm_utils
from cmrm_utils import CMRM, Edit, apply, extract_shift, load_samples, load_vlm
from cmrm_utils.vectors import ShiftVectors

NAMES = {name: getattr(cmrm_utils, name) for name in cmrm_utils.__all__} | {"torch": torch}


@pytest.mark.parametrize("shown", [load_vlm, load_samples, extract_shift, CMRM, apply])
def test_an_example_says_what_happens(shown):
    (example,) = doctest.DocTestFinder(recurse=False).find(shown, shown.__name__, globs=NAMES)
    assert example.examples
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said = []
    assert runner.run(example, out=said.append).failed == 0, "".join(said)


def test_names_of_the_examples():
    assert ShiftVectors is NAMES["ShiftVectors"]
    assert Edit is NAMES["Edit"]
