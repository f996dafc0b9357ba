from cmrm_utils import Sample, Trial, generate, table
from cmrm_utils.methods.prompting import ECSO, SAFETY_PROMPT, safety_prompt


def test_a_safety_prompt_comes_first_and_has_a_name_in_tables(tiny, requests):
    trials = safety_prompt([Trial(sample) for sample in requests])
    assert [t.sample.id for t in trials] == [s.id for s in requests]
    assert all(t.text == f"{SAFETY_PROMPT}\n{t.sample.prompt}" for t in trials)
    rows = table(trials, generate(tiny, trials, max_new_tokens=2))
    assert set(rows["method"]) == {"safety prompt"}
    same = Trial(requests[0], "own", prompt=trials[0].text)
    assert trials[0].id == same.id  # the name is no edit


def test_ecso_looks_away_where_the_model_judges_its_answer_harmful(requests):
    asked = []

    def answer(trials):
        asked.append([trial.text for trial in trials])
        return [reply(trial) for trial in trials]

    def reply(trial):
        if "The answer was: " in trial.text:
            return "Yes, it could." if "answer to flood" in trial.text else "No, yes is wrong."
        if trial.text.startswith("Describe"):
            return f"picture for {trial.sample.prompt}"
        return "answer to flood" if trial.sample is requests[1] else "answer"

    plain = [*(Trial(s) for s in requests[:3]), Trial(Sample("bare", "Who?"), "none")]
    trials = ECSO(answer, plain)
    assert [t.image for t in trials] == ["own", "caption", "own", "none"]
    assert [t.sample.id for t in trials] == [t.sample.id for t in plain]
    prompt = requests[1].prompt
    assert trials[1].text == f"Image caption: picture for {prompt}\n{prompt}"
    assert prompt in asked[2][0]  # it is told what the image matters for
    assert trials[0].id == Trial(requests[0], "own").id
    assert len(asked[0]) == len(asked[1]) == 3
    assert len(asked[2]) == 1
    assert trials[1].edit.settings["method"] == "ECSO"
