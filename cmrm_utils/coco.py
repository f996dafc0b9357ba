"""COCO's images, fetched singly into a folder laid out as COCO is: ``train2017/<id>.jpg``.

Data sets that refer to COCO need a thousand of its images, not 18 GB of archives. A folder that
holds COCO already serves as it is.
"""

import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import requests
from tqdm import tqdm

from cmrm_utils.sample import decode

HOST = "https://s3.amazonaws.com/images.cocodataset.org"
"""COCO's own bucket: by the name images.cocodataset.org it has no certificate of its own."""

ABSENT = "absent.json"
"""Images that the host does not have, or has broken, and why; beside the images."""

_WORKERS = 8
_TIMEOUT = 30.0


class _Missing(Exception):
    """The host says that there is no such image."""


def fetch(
    images: Iterable[str], folder: Path, *, host: str = HOST, tries: int = 4, wait: float = 1.0
) -> dict[str, str]:
    """Download the images that are not there yet, with a progress bar.

    Args:
        images: paths as on the host, ``train2017/000000051977.jpg``.
        folder: where they are kept, under the same paths.
        host: where they come from.
        tries: how often each is asked for, unless the host says that it has none.
        wait: seconds before the second try; doubled with each.

    Returns:
        Why, for each image that could not be had. Those that the host lacks or has broken are
        also noted in the folder (:func:`absent`); one that the network failed on is not.
    """
    todo = [image for image in dict.fromkeys(images) if not (folder / image).is_file()]
    noted = {name: why for name, why in absent(folder).items() if name not in todo}
    failed: dict[str, str] = {}
    with requests.Session() as session, ThreadPoolExecutor(_WORKERS) as pool:
        jobs = {pool.submit(_one, session, host, i, folder, tries, wait): i for i in todo}
        for job in tqdm(as_completed(jobs), "COCO", len(jobs), leave=False, unit="image"):
            image, error = jobs[job], job.exception()
            if isinstance(error, requests.RequestException):
                failed[image] = f"network: {error}"
            elif isinstance(error, (_Missing, ValueError)):
                failed[image] = noted[image] = str(error)
            elif error is not None:
                raise error
    if todo:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ABSENT).write_text(json.dumps(noted, indent=1, sort_keys=True) + "\n")
    return failed


def absent(folder: Path) -> dict[str, str]:
    """The images that an earlier :func:`fetch` found not to be had, and why."""
    path = folder / ABSENT
    return json.loads(path.read_text()) if path.is_file() else {}


def _one(
    session: requests.Session, host: str, image: str, folder: Path, tries: int, wait: float
) -> None:
    """Fetch an image and see that it decodes before it takes its place."""
    for left in reversed(range(tries)):
        try:
            answer = session.get(f"{host}/{image}", timeout=_TIMEOUT)
            if answer.status_code in (403, 404):  # S3 says 403 for what is not there, too
                raise _Missing(f"HTTP {answer.status_code}")
            answer.raise_for_status()
            decode(answer.content)
            break
        except (requests.RequestException, ValueError):
            if not left:
                raise
            time.sleep(wait * 2 ** (tries - 1 - left))
    path = folder / image
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_bytes(answer.content)
    os.replace(draft, path)
