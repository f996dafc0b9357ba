"""Runs that are shared out, and brought together again."""

import pytest
from shard_work import PARAMETERS, texts, work

from cmrm_utils import InputError, generate, load_samples
from cmrm_utils.jobs.shards import Shard, merge, shared_out
from cmrm_utils.store import locked
from cmrm_utils.trials import grid


@pytest.fixture
def parameters(family_folders):
    return {**PARAMETERS, "model": str(family_folders["llava"])}


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2"])
def test_shards_that_are_none(text):
    with pytest.raises(InputError, match="2/4"):
        Shard.parse(text)


def test_shares_are_all_of_it_and_nothing_twice(tiny, samples):
    trials = grid(samples, images=["own", "none", "blank"])
    shares = [shared_out(tiny, [*trials, *trials], number, 3) for number in (1, 2, 3)]
    ids = [trial.id for share in shares for trial in share]
    assert len(ids) == len(set(ids))
    assert set(ids) == {trial.id for trial in trials}
    assert min(map(len, shares)) > len(ids) / 6


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shares_do_not_depend_on_the_machine(fresh, samples, count):
    """Other batches, or fewer rows after a full memory: together they are still the whole list."""
    trials = grid(samples, images=["own", "none", "blank", "noise"])
    ids = []
    for number in range(1, count + 1):
        fresh.batch_size = (1, 16, 2, 64, 3, 8, 128)[number - 1]
        ids += [trial.id for trial in shared_out(fresh, trials, number, count)]
    assert sorted(ids) == sorted({trial.id for trial in trials})


def test_workers_with_other_batches_end(parameters, tmp_path):
    """Sample-level vectors too are the same, so that none waits for what nobody makes."""
    for again in (True, False):
        for number, rows in ((1, 16), (2, 3)):
            parameters = {**parameters, "settings": {"batch_size": rows}}
            waiting = work(tmp_path, parameters, number, 2, ["04"])[1]
            assert again or waiting == []
    assert merge(tmp_path) == len(texts(tmp_path)) > 100


def test_three_shards_say_what_one_process_does(parameters, tmp_path):
    one, many = tmp_path / "one", tmp_path / "many"
    assert work(one, parameters, 1, 1)[1] == []
    for number in (1, 2, 3):
        waiting = work(many, parameters, number, 3)[1]
        assert bool(waiting) == (number < 3), waiting
    with pytest.raises(InputError, match=r"shard 1/3 has trials left"):
        merge(many)
    for number in (1, 2):
        assert work(many, parameters, number, 3)[1] == []
    assert merge(one) == merge(many) == len(texts(one)) > 300
    assert texts(one) == texts(many)
    assert not (many / "parts").exists()
    assert merge(many) == 0


def test_a_merge_misses_no_shard(parameters, tmp_path):
    for number in (1, 3):
        work(tmp_path, parameters, number, 3, ["01"])
    with pytest.raises(InputError, match=r"shard 2/3 has not ended"):
        merge(tmp_path)
    work(tmp_path, parameters, 1, 2, ["01"])
    with pytest.raises(InputError, match="parts of 2 and of 3 shards"):
        merge(tmp_path)


def test_nothing_of_other_shards_is_lost(parameters, tmp_path):
    """What a merge cannot bring in stays, and is named in a line."""
    for number in (1, 2):
        work(tmp_path, parameters, number, 2, ["01"])
    parts = tmp_path / "parts"
    mark, part = parts / "1-of-2.json", parts / "1-of-2.jsonl"
    whole = {path: path.read_bytes() for path in parts.iterdir()}
    damages = [
        (mark, b"", r"1-of-2\.json: cannot be read \(it is empty"),
        (mark, b"{}", r"1-of-2\.json: no mark"),
        (part, b"", r"1-of-2\.jsonl has 0 of \d+ responses"),
        (part, whole[part][:8], r"1-of-2\.jsonl has 0 of \d+ responses"),
        (part, whole[part][:-1], r"1-of-2\.jsonl has \d+ of \d+ responses"),
        (part, None, r"1-of-2\.jsonl has 0 of \d+ responses"),
        (mark, whole[mark].replace(b'"01, list 1": "', b'"01, list 1": "x'), "made other trials"),
    ]
    for path, content, words in damages:
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(InputError, match=words):
            merge(tmp_path)
        path.write_bytes(whole[path])
        assert not (tmp_path / "responses.jsonl").exists()
    with locked(part), pytest.raises(InputError, match=r"1-of-2\.jsonl is being written"):
        merge(tmp_path)
    (parts / "notes-of-mine.json").write_text("")
    assert merge(tmp_path) == len(texts(tmp_path))


def test_a_part_that_has_not_begun(parameters, tmp_path):
    """A kill just after its file was created; the shard then ends with nothing to do."""
    work(tmp_path, parameters, 1, 1, ["02"])
    (tmp_path / "parts" / "1-of-1.jsonl").touch()
    assert merge(tmp_path) == 0
    assert not (tmp_path / "parts").exists()


def test_what_the_run_has_is_not_asked_again(parameters, tmp_path):
    worker, _ = work(tmp_path, parameters, 1, 1, ["01"])
    merge(tmp_path)
    requests = load_samples("organism", "validation")[:8]
    generate(worker.nb.vlm, grid(requests), max_new_tokens=4, out=tmp_path / "responses.jsonl")
    before = texts(tmp_path)
    work(tmp_path, parameters, 1, 1, ["01"])
    merge(tmp_path)
    assert texts(tmp_path) == before
