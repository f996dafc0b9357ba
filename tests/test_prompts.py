import pytest

from cmrm_utils.prompts import caption_prompt, choice_prompt


def test_caption_comes_before_the_query():
    found = caption_prompt("A dog on a lawn.", "What breed is it?")
    assert found == "Image caption: A dog on a lawn.\nWhat breed is it?"


def test_choices_in_llavas_wording():
    assert "\nZ. 25\n" in choice_prompt("Q?", [str(i) for i in range(26)])
    assert choice_prompt("Which is soft?", ["wool", "tin", "clay"]) == (
        "Which is soft?\nA. wool\nB. tin\nC. clay\n"
        "Answer with the option's letter from the given choices directly."
    )


@pytest.mark.parametrize("hint", [None, ""])
def test_context_only_with_a_hint(hint):
    assert choice_prompt("Q?", ["x", "y"], hint).startswith("Q?\nA. x\n")
    assert choice_prompt("Q?", ["x", "y"], "It rains.").startswith("Context: It rains.\nQ?\nA. x\n")
