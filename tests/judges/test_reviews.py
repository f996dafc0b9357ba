import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest

from cmrm_utils import InputError
from cmrm_utils.judges.reviews import (
    Endpoint,
    LocalReviewer,
    load_reviewer,
    relative_scores,
    review,
    review_prompt,
)


def completion(text):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


class Server:
    """Plays an OpenAI-compatible endpoint: gives its answers in order, the last one for ever."""

    def __init__(self):
        self.answers = [completion("8 9\nBoth are good.")]
        self.seen = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.seen.append((self.path, dict(self.headers), body))
                answers = server.answers
                status, text = answers.pop(0) if len(answers) > 1 else answers[0]
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def endpoint(self, **settings):
        return Endpoint(self.url, "critic", **{"pause": 0.0, **settings})

    def close(self):
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.close()


ROWS = pd.DataFrame(
    {
        "query": ["What is shown?", "Where is it?", "Why is it {odd}?"],
        "answer": ["A red ring.", "At the top.", "It floats."],
        "response": ["A ring.", "Up there.", "No {idea}."],
        "kind": ["detail", "conv", "conv"],
        "caption": ["One red ring at the top.", None, None],
    }
)


def test_a_request_and_its_reply(server):
    endpoint = server.endpoint(key="secret-key")
    assert endpoint("How good?") == "8 9\nBoth are good."
    ((path, headers, body),) = server.seen
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret-key"
    assert body == {
        "model": "critic",
        "messages": [{"role": "user", "content": "How good?"}],
        "temperature": 0,
    }
    assert "secret-key" not in repr(endpoint) + endpoint.identity


def test_reviews_are_scored_and_kept_word_for_word(server, tmp_path):
    server.answers = [
        completion("8 9\nBoth are good."),
        completion("\nBoth deserve praise."),
        completion("10, 5"),
    ]
    out = tmp_path / "deep" / "reviews.jsonl"
    found = review(ROWS, server.endpoint(key="secret-key"), out=out)
    assert found["reply"].tolist() == ["8 9\nBoth are good.", "\nBoth deserve praise.", "10, 5"]
    assert found["reference_score"].tolist()[::2] == [8, 10]
    assert found["candidate_score"].tolist()[::2] == [9, 5]
    assert found.loc[1, ["reference_score", "candidate_score"]].isna().all()
    assert "Authorization" in server.seen[0][1]
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in kept[1:]] == found["reply"].tolist()
    assert "secret-key" not in out.read_text()
    asked = len(server.seen)
    again = review(ROWS, server.endpoint(), out=out)
    assert len(server.seen) == asked == 3
    pd.testing.assert_frame_equal(again, found)
    changed = ROWS.assign(response=["A ring.", "Up there.", "Perhaps."])
    review(changed, server.endpoint(), out=out)
    assert len(server.seen) == 4


def test_hidden_reasoning_is_not_reviewed():
    text = review_prompt("Why?", "Because.", "<think>Hm, why?</think>So.")
    assert "[assistant 2]\nSo.\n[end" in text
    assert text == review_prompt("Why?", "Because.", "So.")


def test_equal_reviews_are_asked_once(server):
    twice = pd.concat([ROWS, ROWS], ignore_index=True)
    found = review(twice, server.endpoint())
    assert len(server.seen) == 3
    assert len(found) == 6


def test_replies_of_another_reviewer_are_refused(server, tmp_path):
    out = tmp_path / "reviews.jsonl"
    review(ROWS, server.endpoint(), out=out)
    with pytest.raises(InputError, match="made with reviewer ="):
        review(ROWS, Endpoint(server.url, "another"), out=out)
    with pytest.raises(InputError, match="made with reviewer ="):
        review(ROWS, server.endpoint(settings={"temperature": 1}), out=out)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_transient_failures_are_tried_again(server, status):
    server.answers = [(status, "busy"), (status, "busy"), completion("7 7")]
    assert server.endpoint()("How good?") == "7 7"
    assert len(server.seen) == 3


def test_pauses_grow(server, monkeypatch):
    slept = []
    monkeypatch.setattr("cmrm_utils.judges.reviews.time.sleep", slept.append)
    server.answers = [(500, "busy")]
    with pytest.raises(InputError, match=r"gave up after 4 tries \(HTTP 500 busy\)"):
        server.endpoint(tries=4, pause=1.0)("How good?")
    assert slept == [1, 2, 4]


def test_a_refusal_is_not_tried_again(server):
    server.answers = [(401, "no such\nkey")]
    with pytest.raises(InputError, match="chat/completions: HTTP 401 no such key"):
        server.endpoint()("How good?")
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "body",
    [
        "<html>",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": [{"text": "8 9"}]}',
        '{"choices": [{"message": {"content": null}}]}',
        '{"choices": 3}',
    ],
)
def test_answers_of_another_form(server, body):
    server.answers = [(200, body)]
    with pytest.raises(InputError, match=r"chat/completions: (not a chat completion|its message)"):
        server.endpoint()("How good?")


def test_what_was_replied_before_a_failure_is_kept(server, tmp_path):
    out = tmp_path / "reviews.jsonl"
    server.answers = [completion("8 9"), (400, "too long")]
    with pytest.raises(InputError, match="too long"):
        review(ROWS, server.endpoint(), out=out)
    server.answers = [completion("6 6")]
    found = review(ROWS, server.endpoint(), out=out)
    assert found["reference_score"].tolist() == [8, 6, 6]
    assert len(server.seen) == 4


def test_nobody_there(server):
    server.close()
    with pytest.raises(InputError, match="gave up after 2 tries"):
        server.endpoint(tries=2)("How good?")


def test_the_endpoint_of_the_environment(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert load_reviewer("critic")("How good?").startswith("8 9")
    path, headers, body = server.seen[0]
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer k")
    assert body["model"] == "critic"
    monkeypatch.setenv("OPENAI_BASE_URL", "file:///etc")
    with pytest.raises(InputError, match="expected http"):
        load_reviewer("critic")
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(InputError, match=r"critic.*set OPENAI_BASE_URL"):
        load_reviewer("critic")


def test_the_reference_comes_first():
    prompt = review_prompt("Why is it {odd}?", "REFERENCE {0}", "CANDIDATE", "CAPTION")
    places = [
        prompt.index(x) for x in ("CAPTION", "Why is it {odd}?", "REFERENCE {0}", "CANDIDATE")
    ]
    assert places == sorted(places)
    assert "in words" not in review_prompt("Why?", "a", "b")


def test_no_reference_to_compare_with(server):
    rows = ROWS.assign(answer=["a", None, "c"])
    with pytest.raises(InputError, match="row 1 has no reference"):
        review(rows, server.endpoint())
    assert not server.seen


def test_a_local_model_reviews(judge_folder, tmp_path):
    reviewer = load_reviewer(str(judge_folder))
    assert isinstance(reviewer, LocalReviewer)
    short = LocalReviewer(reviewer.reader, max_new_tokens=5)
    found = review(ROWS, short, out=tmp_path / "reviews.jsonl")
    reader = reviewer.reader
    text = reader.chat(review_prompt("Where is it?", "At the top.", "Up there."))
    ids = reader.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    whole = reader.model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    assert found.loc[1, "reply"] == reader.tokenizer.decode(whole).strip()
    assert found["reference_score"].isna().all()


def scored(*rows):
    columns = ["kind", "reference_score", "candidate_score"]
    return pd.DataFrame(list(rows), columns=columns)


def test_relative_scores():
    nan = np.nan
    rows = scored(
        ("conv", 10, 5), ("conv", 6, 7), ("conv", nan, nan), ("detail", 8, 8), ("complex", nan, nan)
    )
    found = relative_scores(rows).set_index("kind")
    assert list(found.index) == ["all", "conv", "detail", "complex"]
    # the ratio of the means, not the mean of the ratios
    assert found["score"].tolist()[:3] == pytest.approx([100 * 20 / 24, 100 * 12 / 16, 100])
    assert np.isnan(found.loc["complex", "score"])
    assert found["reviews"].tolist() == [3, 2, 1, 0]
    assert found["unparsed"].tolist() == [2, 1, 0, 1]
    low, high = found.loc["conv", ["low", "high"]]
    assert (low, high) == pytest.approx((50, 700 / 6))
    pd.testing.assert_frame_equal(relative_scores(rows), found.reset_index())


def test_references_without_a_point():
    assert np.isnan(relative_scores(scored(("conv", 0, 5)))["score"]).all()
    assert relative_scores(scored())["reviews"].tolist() == [0]


def test_an_endpoint_is_given_or_set_and_its_key_only_set(monkeypatch, judge_folder):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://set/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert load_reviewer("critic").url == "http://set/v1"
    given = load_reviewer("critic", "http://given/v1")
    assert (given.url, given.model, given.key) == ("http://given/v1", "critic", "k")
    assert isinstance(load_reviewer(str(judge_folder)), LocalReviewer)
