import json
import shutil
import warnings
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from zipfile import ZipFile

import huggingface_hub
import pandas as pd
import pytest
from conftest import FIXTURES
from PIL import Image

from cmrm_utils import InputError, Sample, load_samples
from cmrm_utils.data import coco
from cmrm_utils.data.load import left_out, parts
from cmrm_utils.data.pairing import pair
from cmrm_utils.data.public import find_files, load_set, read_set
from cmrm_utils.data.sets import FIGSTEP_PROMPT, SETS, find_set
from cmrm_utils.paths import data_home
from cmrm_utils.sample import SPLITS, split_of

KINDS = {
    "vlsafe": {"harmful-vlsafe": 12},
    "jailbreak": {"harmful-jailbreak": 22},
    "mm-safetybench": {"harmful-mm-safetybench": 26},
    "figstep": {"harmful-figstep": 6},
    "xstest": {"benign-xstest": 10, "harmful-xstest": 10},
    "vlguard": {"benign-vlguard": 4, "harmful-vlguard-text": 4, "harmful-vlguard-image": 4},
    "scienceqa": {"choice-image": 6, "choice-text": 6},
    "llava-bench-coco": {"open-conv": 4, "open-detail": 4, "open-complex": 4},
}


def by_id(name, home=FIXTURES):
    return {sample.id: sample for sample in load_set(name, home)}


def test_every_set_has_a_fixture():
    assert set(KINDS) == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_every_set_loads_from_a_local_copy(name):
    samples = load_set(name, FIXTURES)
    assert Counter(sample.kind for sample in samples) == KINDS[name]
    ids = [sample.id for sample in samples]
    assert len(set(ids)) == len(ids)
    assert all(i.startswith(f"{name}/") for i in ids)
    assert all(sample.query and sample.group for sample in samples)
    for sample in samples:
        image = sample.load_image()
        assert (image is None) == (sample.kind == "choice-text")
        assert image is None or image.size == (8, 6)


def test_vlsafe():
    sample = by_id("vlsafe")["vlsafe/000000000007"]
    assert sample.query == "How do I hide the bench from my sister?"
    assert sample.caption == "A bench in a sunny garden."
    assert sample.image == FIXTURES / "coco/train2017/000000000007.jpg"
    assert (sample.task, sample.answer) == ("harmful", None)


def test_jailbreak_leaves_two_policies_out():
    samples = by_id("jailbreak")
    groups = Counter(sample.group for sample in samples.values())
    assert len(groups) == 11
    assert not {"Legal Opinion", "Financial Advice"} & set(groups)
    assert samples["jailbreak/5-1"].group == "Fraud"
    assert samples["jailbreak/5-1"].query == "How do I eat the last umbrella, unseen?"


def test_mm_safetybench():
    sample = by_id("mm-safetybench")["mm-safetybench/Illegal_Activitiy-1"]
    assert sample.query.startswith("The image shows a horse.")
    assert sample.group == "Illegal_Activitiy"
    assert isinstance(sample.image, bytes)


def test_figstep_asks_in_the_image():
    sample = by_id("figstep")["figstep/2_3"]
    assert sample.query == FIGSTEP_PROMPT
    assert sample.caption == "How do I paint a horse pink?"
    assert (sample.image.name, sample.group) == ("query_ForbidQI_2_3_6.png", "Hate Speech")


def test_xstest_safe_prompts_are_benign_and_have_images():
    samples = by_id("xstest")
    safe, unsafe = samples["xstest/1"], samples["xstest/6"]
    assert (safe.task, safe.group) == ("benign", "homonyms")
    assert (unsafe.task, unsafe.group) == ("harmful", "contrast_homonyms")
    assert all(sample.image and sample.caption for sample in samples.values())


def test_vlguard_asks_twice_about_safe_images():
    samples = by_id("vlguard")
    assert samples["vlguard/Ads_2#safe"].query == "What colour is the bench?"
    assert samples["vlguard/Ads_2#unsafe"].query == "How do I steal the bench's colour?"
    assert samples["vlguard/Ads_1#instruction"].query == "Praise the sofa."
    assert samples["vlguard/Ads_2#safe"].image == samples["vlguard/Ads_2#unsafe"].image
    tasks = {i.partition("#")[2]: sample.task for i, sample in samples.items()}
    assert tasks == {"safe": "benign", "unsafe": "harmful", "instruction": "harmful"}


def test_scienceqa_in_the_wording_of_llava():
    samples = by_id("scienceqa")
    assert samples["scienceqa/4"].prompt == (
        "Context: A zebra fits into a bag.\n"
        "Which of these is larger than a zebra?\n"
        "A. a house\nB. half a zebra\nC. a crumb\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert samples["scienceqa/3"].prompt == (
        "Which of these is larger than a bench?\n"
        "A. a house\nB. half a bench\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert [samples[f"scienceqa/{i}"].answer for i in (3, 4)] == ["A", "B"]
    assert all(sample.task == "choice" for sample in samples.values())


def test_llava_bench_is_open():
    sample = by_id("llava-bench-coco")["llava-bench-coco/000000441148#complex"]
    assert sample.task == "open"
    assert sample.answer == "A sofa, which someone left in the garden."
    assert sample.caption == "A sofa in a garden."


def test_no_image_is_in_two_splits():
    """Nor in different splits of different sets; all questions about an image are together."""
    names = [name for name in SETS if name not in ("mm-safetybench", "figstep", "scienceqa")]
    places = {}
    for sample in (sample for name in names for sample in load_set(name, FIXTURES)):
        picture = sample.group if isinstance(sample.image, bytes) else sample.image
        places.setdefault(picture, set()).add(split_of(sample.id))
    assert all(len(splits) == 1 for splits in places.values())
    assert set().union(*places.values()) == set(SPLITS)


# ---- pairing

SCENES = [
    Sample(f"s/{i}", "q", image=f"{i}.jpg", caption=f"A {thing} on a table.")
    for i, thing in enumerate(["kettle", "piano", "ladder", "candle"] * 30)
]


def test_pairing_takes_the_nearest_caption_and_no_image_twice():
    requests = [Sample(f"r/{i}", "Where is my PIANO?", kind="open-k", group="g") for i in range(20)]
    found = pair(requests, SCENES)
    assert len({sample.image for sample in found}) == 20
    for request, sample in zip(requests, found, strict=True):
        assert (sample.id, sample.query, sample.kind, sample.group) == (
            request.id,
            request.query,
            "open-k",
            "g",
        )
        scene = next(scene for scene in SCENES if scene.image == sample.image)
        assert split_of(scene.id) == split_of(sample.id)
    for split in SPLITS:
        pianos = sum("piano" in s.caption for s in SCENES if split_of(s.id) == split)
        paired = [s for s in found if split_of(s.id) == split]
        assert sum("piano" in s.caption for s in paired) == min(pianos, len(paired))


def test_pairing_depends_on_no_order():
    requests = [Sample(f"r/{i}", f"Question {i}") for i in range(60)]
    found = {s.id: s.image for s in pair(requests, SCENES)}
    assert {s.id: s.image for s in pair(requests[::-1], SCENES[::-1])} == found
    assert len(set(found.values())) == 60


def test_more_requests_than_images():
    found = pair([Sample(f"r/{i}", "q") for i in range(300)], SCENES)
    assert set(Counter(s.image for s in found).values()) <= {2, 3, 4}
    with pytest.raises(InputError, match=r"no image in the .* split to pair r/"):
        pair([Sample(f"r/{i}", "q") for i in range(9)], SCENES[:1])


@pytest.mark.parametrize(
    "union",
    [
        "vlsafe+jailbreak@anchors",
        "vlsafe+xstest@anchors",
        "vlsafe+jailbreak@test",
        "jailbreak@anchors+xstest@test+vlsafe",
        "jailbreak+xstest",
        "jailbreak@validation+xstest",
        "vlsafe@anchors+jailbreak@anchors",
    ],
)
def test_no_image_is_in_two_splits_of_a_union(monkeypatch, union):
    monkeypatch.setenv("CMRM_DATA", str(FIXTURES))
    places = {}
    for split, samples in load_samples(union).items():
        for sample in samples:
            places.setdefault(sample.image, set()).add(split)
    assert {len(splits) for splits in places.values()} == {1}
    wholly = {part.split("@")[0]: part.split("@")[1] for part in union.split("+") if "@" in part}
    for name, place in wholly.items():
        every = [s.id for s in load_samples(union)[place] if s.id.startswith(f"{name}/")]
        assert len(every) == sum(KINDS[name].values())


@pytest.mark.parametrize("union", ["vlsafe@anchors+jailbreak", "xstest@test+vlsafe@anchors"])
def test_images_of_another_split_are_refused(monkeypatch, union):
    monkeypatch.setenv("CMRM_DATA", str(FIXTURES))
    for split in (None, "test"):
        with pytest.raises(InputError, match=r"vlsafe@anchors puts all .*(jailbreak|xstest)@anch"):
            load_samples(union, split)


def test_pairing_by_id_is_what_it_was():
    """Published numbers hang on it."""
    whole = {s.id: s.image for s in read_set("jailbreak", FIXTURES, split="anchors")}
    for sample in read_set("jailbreak", FIXTURES):
        scene = f"vlsafe/{sample.image.stem}"
        assert split_of(scene) == split_of(sample.id)
        assert split_of(f"vlsafe/{whole[sample.id].stem}") == "anchors"
    pairs = sorted((s.id, s.image.name) for s in read_set("jailbreak", FIXTURES))
    assert sha256(repr(pairs).encode()).hexdigest()[:16] == "6265f380baae99b3"


# ---- broken files


def edit_lines(name, change):
    """Change a text file's lines."""

    def edit(home):
        path = home / name
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

    return edit


def edit_table(name, change):
    """Change a table's frame."""

    def edit(home):
        path = home / name
        if path.suffix == ".csv":
            change(pd.read_csv(path, keep_default_na=False)).to_csv(path, index=False)
        else:
            change(pd.read_parquet(path)).to_parquet(path)

    return edit


def edit_list(name, change):
    """Change the list in a JSON file."""

    def edit(home):
        rows = json.loads((home / name).read_text())
        change(rows)
        (home / name).write_text(json.dumps(rows))

    return edit


def setting(row, column, value):
    """Change one value of a table; every row where ``row`` is None."""

    def change(frame):
        frame[column] = frame[column].astype(object)
        for i in frame.index if row is None else [row]:
            frame.at[i, column] = value
        return frame

    return change


def line_with(row, **fields):
    def change(lines):
        lines[row] = json.dumps({**json.loads(lines[row]), **fields}) + "\n"
        return lines

    return change


def junk_image(frame):
    frame.at[1, "image"] = {"bytes": b"no image", "path": None}
    return frame


def twice(frame):
    return pd.concat([frame, frame.iloc[[2]]], ignore_index=True)


def write(name, content):
    return lambda home: (home / name).write_bytes(content)


def unlink(name):
    return lambda home: (home / name).unlink()


VLSAFE = "vlsafe/VLSafe/harmlessness_examine.jsonl"
JAILBREAK = "jailbreak/forbidden_question_set.csv"
FRAUD = "mm-safetybench/data/Fraud/SD_TYPO.parquet"
FIGSTEP = "figstep/data/question/safebench.csv"
XSTEST = "xstest/xstest_prompts.csv"
VLGUARD = "vlguard/test.json"
SCIENCEQA = "scienceqa/data/test-00000-of-00001-f0e719df791966ff.parquet"
LLAVA = "llava-bench-coco/data/train-00000-of-00001.parquet"

BROKEN = [
    # an empty file, of each format
    *[(name.split("/")[0], write(name, b""), f"{name}: the file is empty") for name in
      (VLSAFE, JAILBREAK, FRAUD, FIGSTEP, XSTEST, VLGUARD, SCIENCEQA, LLAVA)],
    ("xstest", edit_lines(XSTEST, lambda lines: lines[:1]), "xstest_prompts.csv: no rows"),
    ("vlguard", write(VLGUARD, b"[]"), "test.json: no rows"),
    ("vlguard", write(VLGUARD, b'{"a": 1}'), "test.json: not a list of rows"),
    ("vlguard", write(VLGUARD, b"[1]"), "test.json, row 1: not a readable row .no JSON"),
    ("xstest", edit_table(XSTEST, setting(2, "prompt", "How\x00?")), "prompts.csv:4: not UTF-8"),
    ("jailbreak", edit_table(JAILBREAK, setting(3, "q_id", "²")), "row 4: q_id is '²', not int"),
    # a missing column, of each set
    ("vlsafe", edit_lines(VLSAFE, lambda lines: [s.replace("query", "ask") for s in lines]),
     "examine.jsonl: no column 'query'; it has ask, caption, image_id"),
    ("jailbreak", edit_table(JAILBREAK, lambda f: f.drop(columns="q_id")), "no column 'q_id'"),
    ("mm-safetybench", edit_table(FRAUD, lambda f: f.drop(columns="image")),
     r"Fraud/SD_TYPO\.parquet: no column 'image'"),
    ("figstep", edit_table(FIGSTEP, lambda f: f.drop(columns="task_id")), "no column 'task_id'"),
    ("xstest", edit_table(XSTEST, lambda f: f.drop(columns="label")), "no column 'label'"),
    ("vlguard", edit_list(VLGUARD, lambda rows: [row.pop("safe") for row in rows]),
     "test.json: no column 'safe'"),
    ("scienceqa", edit_table(SCIENCEQA, lambda f: f.drop(columns="hint")), "no column 'hint'"),
    ("llava-bench-coco", edit_table(LLAVA, lambda f: f.drop(columns="answer")), "column 'answer'"),
    # a file cut short
    ("vlsafe", edit_lines(VLSAFE, lambda lines: [*lines[:4], lines[4][:30]]),
     "examine.jsonl:5: not a readable row"),
    ("jailbreak", edit_lines(JAILBREAK, lambda lines: [*lines[:7], "3,Phys"]),
     "set.csv:8: 2 cells, but the header has "),
    ("xstest", edit_lines(XSTEST, lambda lines: [*lines[:3], '3,"How do']),
     "prompts.csv:4: a quote opens in this row"),
    ("vlguard", lambda home: (home / VLGUARD).write_text((home / VLGUARD).read_text()[:900]),
     "test.json: not JSON"),
    ("scienceqa", lambda home: (home / SCIENCEQA).write_bytes((home / SCIENCEQA).read_bytes()[:99]),
     "parquet: cannot be read"),
    # a value of a wrong type, or none
    ("vlsafe", edit_lines(VLSAFE, line_with(2, query=7)), "row 3: query is 7, not str"),
    ("vlsafe", edit_lines(VLSAFE, line_with(2, query=" ")), "row 3: query is empty"),
    ("vlsafe", edit_lines(VLSAFE, line_with(2, image_id=None)), "row 3: image_id is missing"),
    ("vlsafe", edit_lines(VLSAFE, line_with(2, image_id="../x.jpg")), "row 3: image_id '../x.jpg'"),
    ("jailbreak", edit_table(JAILBREAK, setting(3, "q_id", "x")), "row 4: q_id is 'x', not int"),
    ("mm-safetybench", edit_table(FRAUD, setting(None, "question", 1.5)),
     r"Fraud/SD_TYPO\.parquet, row 1: question is 1.5, not str"),
    ("figstep", edit_table(FIGSTEP, setting(1, "task_id", "x")), "row 2: task_id is 'x', not int"),
    ("xstest", edit_table(XSTEST, setting(1, "label", "dubious")), "row 2: label is 'dubious'"),
    ("xstest", edit_table(XSTEST, setting(1, "prompt", "")), "row 2: prompt is empty"),
    ("vlguard", edit_list(VLGUARD, lambda rows: rows[2].update(safe="yes")),
     "row 3: safe is 'yes', not bool"),
    ("vlguard", edit_list(VLGUARD, lambda rows: rows[2].update(safe=False)),
     "row 3: instr-resp holds .'safe_instruction', 'unsafe_instruction'., not .'instruction'."),
    ("scienceqa", edit_table(SCIENCEQA, setting(None, "answer", "B")),
     "row 1: answer is 'B', not int"),
    ("scienceqa", edit_table(SCIENCEQA, setting(4, "answer", 2)),
     "row 5: answer is 2, but there are 2 choices"),
    ("llava-bench-coco", edit_table(LLAVA, setting(4, "category", "chat")),
     "row 5: category is 'chat'"),
    ("llava-bench-coco", edit_table(LLAVA, setting(4, "image", None)), "row 5: image is missing"),
    # an image that is none
    ("mm-safetybench", edit_table(FRAUD, junk_image), "SD_TYPO.parquet, row 2: no readable"),
    ("scienceqa", edit_table(SCIENCEQA, junk_image), "row 2: no readable image"),
    ("llava-bench-coco", edit_table(LLAVA, junk_image), "row 2: no readable image"),
    ("figstep", write("figstep/data/images/SafeBench/query_ForbidQI_1_2_6.png", b"no image"),
     r"safebench\.csv, row 2: no readable image .*1_2_6\.png"),
    ("figstep", unlink("figstep/data/images/SafeBench/query_ForbidQI_1_2_6.png"),
     r"safebench\.csv, row 2: no readable image .*1_2_6\.png"),
    ("vlguard", unlink("vlguard/test/bad_ads/00000003-made-up.png"),
     r"test\.json, row 4: no readable image .*00000003-made-up\.png"),
    # an id that comes twice
    ("jailbreak", edit_table(JAILBREAK, twice), "row 27: duplicate id 'jailbreak/1-0'"),
    ("mm-safetybench", edit_table(FRAUD, setting(None, "id", "4")),
     "row 2: duplicate id 'mm-safetybench/Fraud-4'"),
    ("figstep", edit_table(FIGSTEP, twice), "row 7: duplicate id 'figstep/1_3'"),
    ("xstest", edit_table(XSTEST, twice), "row 21: duplicate id 'xstest/3'"),
    ("vlguard", edit_list(VLGUARD, lambda rows: rows.append(rows[1])),
     "row 9: duplicate id 'vlguard/Ads_1#instruction'"),
    ("llava-bench-coco", edit_table(LLAVA, twice), "row 13: duplicate id .*#complex"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spoil", "message"), BROKEN)
def test_broken_files_are_named_with_their_row(home, name, spoil, message):
    spoil(home)
    with pytest.raises(InputError, match=message) as found:
        load_set(name, home)
    assert str(home) in str(found.value)
    assert len(str(found.value).splitlines()) == 1


def test_a_cut_image_is_found_when_it_is_decoded(home):
    path = home / "vlguard/test/bad_ads/00000002-made-up.png"
    noise = Image.effect_noise((60, 60), 90)
    noise.save(path)
    path.write_bytes(path.read_bytes()[:1500])
    sample = by_id("vlguard", home)["vlguard/Ads_2#safe"]
    with pytest.raises(InputError, match=r"vlguard/Ads_2#safe: .*00000002-made-up\.png"):
        sample.load_image()


def test_rows_of_a_repeated_image_are_numbered_and_stay_together(home):
    edit_lines(VLSAFE, lambda lines: [*lines, lines[3], lines[3]])(home)
    ids = [sample.id for sample in load_set("vlsafe", home)]
    assert ids[-2:] == [f"{ids[3]}#2", f"{ids[3]}#3"]
    assert len({split_of(i) for i in (ids[3], *ids[-2:])}) == 1


def test_a_repeated_image_is_paired_once(home):
    before = load_set("xstest", FIXTURES)
    edit_lines(VLSAFE, lambda lines: [*lines, *lines])(home)
    after = load_set("xstest", home)
    for old, new in zip(before, after, strict=True):
        assert old.image.name == new.image.name
        assert "#" not in new.image.name


# ---- where files come from


def test_data_home(monkeypatch, tmp_path):
    monkeypatch.delenv("CMRM_DATA", raising=False)
    assert data_home().name == "data"
    assert (data_home().parent / "cmrm_utils").is_dir()
    monkeypatch.setenv("CMRM_DATA", str(tmp_path))
    assert data_home() == tmp_path
    assert data_home(tmp_path / "x") == tmp_path / "x"


def test_an_incomplete_local_copy_is_not_mixed_with_the_hub(home):
    (home / FRAUD).unlink()
    with pytest.raises(InputError, match=r"no data/Fraud/SD_TYPO\.parquet .*run: hf download"):
        load_set("mm-safetybench", home)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("download", [True, False])
def test_what_is_nowhere_is_said_with_the_way_to_get_it(tmp_path, monkeypatch, name, download):
    """Offline, as all tests are."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    public = SETS[name]
    with pytest.raises(InputError) as found:
        load_set(name, tmp_path, download=download)
    message = str(found.value)
    assert len(message.splitlines()) == 1
    assert f"in {tmp_path}, run: {public.command}" in message
    assert public.hub is None or download or f"cmrm data check {name} --fetch" in message


def test_files_of_the_hub_are_read_from_its_cache(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    public = SETS["scienceqa"]
    stored = cache / "datasets--derek-thomas--ScienceQA" / "snapshots" / public.revision
    (stored / "data").mkdir(parents=True)
    shutil.copy(FIXTURES / SCIENCEQA, stored / "data")
    assert find_files(public, tmp_path, download=False) == [stored / public.files[0]]
    samples = load_set("scienceqa", tmp_path, download=False)
    assert [s.id for s in samples] == [s.id for s in load_set("scienceqa", FIXTURES)]
    other = replace(public, revision="0" * 40)
    with pytest.raises(InputError, match="not on this machine"):
        find_files(other, tmp_path, download=False)


@pytest.mark.parametrize("download", [True, False])
def test_the_hub_is_asked_for_the_pinned_files(tmp_path, monkeypatch, download):
    asked = []

    def hf_hub_download(repo, name, **options):
        asked.append((repo, name, options))
        return tmp_path / name

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    public = SETS["vlsafe"]
    assert find_files(public, tmp_path, download=download) == [tmp_path / public.files[0]]
    options = {"repo_type": "dataset", "revision": public.revision}
    options["local_files_only"] = not download
    assert asked == [("YangyiYY/LVLM_NLF", "VLSafe/harmlessness_examine.jsonl", options)]


def test_what_is_not_pinned_is_pinned_at_the_commit_it_is_first_taken_at(tmp_path, monkeypatch):
    asked, newest = [], ["ab" * 20, "cd" * 20]

    def hf_hub_download(repo, name, revision, **options):
        asked.append(revision)
        return tmp_path / "cache" / "snapshots" / (revision or newest.pop(0)) / name

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    public = SETS["llava-bench-coco"]
    first = find_files(public, tmp_path / "data")
    assert find_files(public, tmp_path / "data") == first
    assert set(asked[: len(asked) // 2]) == {None}
    assert set(asked[len(asked) // 2 :]) == {"ab" * 20}
    find_files(SETS["vlsafe"], tmp_path / "data")
    assert asked[-1] == SETS["vlsafe"].revision
    kept = json.loads((tmp_path / "data" / "revisions.json").read_text())
    assert kept == {public.hub: "ab" * 20}
    (tmp_path / "data" / "revisions.json").write_text("[")
    with pytest.raises(InputError, match=r"revisions\.json: cannot be read"):
        find_files(public, tmp_path / "data")


def test_revisions_are_whole_commit_hashes_or_none():
    for public in SETS.values():
        assert public.revision is None or len(bytes.fromhex(public.revision)) == 20
        assert public.revision is None or public.revision in public.command


@pytest.fixture
def cached_vlguard(tmp_path, monkeypatch):
    """VLGuard as the hub's cache holds it: metadata, and the images in an archive."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    stored = cache / "datasets--ys-zong--VLGuard" / "snapshots" / SETS["vlguard"].revision
    stored.mkdir(parents=True)
    shutil.copy(FIXTURES / VLGUARD, stored)
    shutil.make_archive(stored / "test", "zip", FIXTURES / "vlguard", "test")
    return stored


def test_images_come_out_of_the_hubs_archive(cached_vlguard, tmp_path):
    found = load_set("vlguard", tmp_path, download=False)
    wanted = by_id("vlguard")
    assert [sample.id for sample in found] == list(wanted)
    for sample in found:
        assert sample.image == wanted[sample.id].image.read_bytes()


@pytest.mark.parametrize("content", [b"no archive", None])
def test_a_broken_or_incomplete_archive_is_told_by_row(cached_vlguard, tmp_path, content):
    with ZipFile(cached_vlguard / "test.zip", "w") as archive:
        archive.writestr("test/other.png", b"")
    if content:
        (cached_vlguard / "test.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"test\.json, row 1: no readable image .* in .*test\.zip"):
        read_set("vlguard", tmp_path / str(content), download=False)


def test_a_revision_of_ones_own(tmp_path, monkeypatch):
    asked = []

    def hf_hub_download(repo, name, **options):
        asked.append(options["revision"])
        return FIXTURES / "llava-bench-coco" / name

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    name = f"llava-bench-coco@{'ab' * 20}"
    assert [s.id for s in load_set(name, tmp_path)] == list(by_id("llava-bench-coco"))
    assert asked == ["ab" * 20]
    assert find_set(name).part == name
    assert find_set("vlsafe").part == "vlsafe"
    for wrong in ("llava-bench-coco@main", f"figstep@{'ab' * 20}", "nothing"):
        assert find_set(wrong) is None
        with pytest.raises(InputError, match=wrong):
            load_set(wrong, tmp_path)


# ---- COCO images


def test_images_to_be_fetched_are_asked_for(home):
    (home / "coco/train2017/000000000007.jpg").unlink()
    with pytest.raises(InputError, match=r"vlsafe: 1 of its COCO images .* check vlsafe --fetch"):
        load_set("vlsafe", home)
    place = split_of("vlsafe/000000000007")  # a set wholly of a split is paired otherwise
    with pytest.raises(InputError, match=rf"check jailbreak@{place} --fetch"):
        load_set("jailbreak", home, split=place)


def test_images_not_to_be_had_leave_their_samples_out_by_name(home):
    lost = "train2017/000000000007.jpg"
    (home / "coco" / lost).unlink()
    (home / "coco" / coco.ABSENT).write_text(json.dumps({lost: "HTTP 404"}))
    every = {name: read_set(name, home) for name in ("vlsafe", "jailbreak")}
    for name, samples in every.items():
        affected = {s.id for s in samples if s.image == home / "coco" / lost}
        with pytest.warns(UserWarning, match="left out") as found:
            left = load_set(name, home)
        assert {s.id for s in samples} - {s.id for s in left} == affected
        assert affected
        assert all(i in str(found[0].message) for i in affected)


def test_what_is_left_out_is_told_by_sample(home):
    gone, waiting = "train2017/000000000007.jpg", "train2017/000000000003.jpg"
    for image in (gone, waiting):
        (home / "coco" / image).unlink()
    assert left_out("vlsafe", home) == {}
    (home / "coco" / coco.ABSENT).write_text(json.dumps({gone: "HTTP 404"}))
    place = split_of("vlsafe/000000000007")
    for name in ("vlsafe+jailbreak", f"jailbreak@{place}", "organism+figstep"):
        wanted = {
            sample.id
            for part, split in parts(name)
            if part in SETS
            for sample in read_set(part, home, split=split)
            if sample.image == home / "coco" / gone
        }
        assert left_out(name, home) == dict.fromkeys(wanted, "HTTP 404")
        assert bool(wanted) == (name != "organism+figstep")
    (home / "coco" / coco.ABSENT).write_text("[")
    with pytest.raises(InputError, match=r"absent\.json: cannot be read"):
        left_out("vlsafe", home)


@pytest.mark.parametrize("name", SETS)
def test_local_data_needs_no_cache(name, monkeypatch):
    """Where HOME cannot be written, say."""
    for variable in ("HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(variable, "/proc/nowhere")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/proc/nowhere")
    assert len(read_set.__wrapped__(name, FIXTURES)) == sum(KINDS[name].values())


@pytest.mark.parametrize(
    "made", [PermissionError(13, "Permission denied", "/x/hub"), OSError(28, "No space")]
)
def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch, made):
    def hf_hub_download(repo, name, **options):
        raise made

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/x/hub")
    with pytest.raises(InputError, match=r"vlsafe: /x/hub cannot be written .*set HF_HUB_CACHE"):
        find_files(SETS["vlsafe"], tmp_path)


def test_a_whole_set_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_set("vlsafe", FIXTURES)
