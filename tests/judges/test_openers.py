"""Openers: first tokens that begin refusals, and seldom anything else."""

import pytest

from cmrm_utils.errors import InputError
from cmrm_utils.judges.openers import find_openers
from cmrm_utils.store import Response

NO, YES = "I'm sorry, but I can't help with that.", "Here is a list of ideas."


def openers(*pairs, more=()):
    said = [Response(NO if no else YES, (token, 9), True) for token, no in pairs]
    return find_openers([*said, *more], [*(no for _, no in pairs), *(False for _ in more)])


def test_a_token_that_begins_refusals_alone_is_an_opener():
    assert openers((1, True), (1, True), (2, False), (2, False)) == (1,)


def test_one_refusal_is_too_few_and_a_mixed_token_no_opener():
    mixed = [(3, True)] * 8 + [(3, False)]  # 89%
    pure = [(4, True)] * 9 + [(4, False)]  # 90%
    assert openers((1, True), (2, True), (2, True), *mixed, *pure) == (2, 4)


def test_empty_responses_open_nothing():
    assert openers((1, True), (1, True), more=[Response("", (), True)]) == (1,)


def test_a_model_that_refuses_nothing_is_told():
    with pytest.raises(InputError, match="of 2 responses to anchors, 0 are refusals"):
        openers((1, False), (2, False))
