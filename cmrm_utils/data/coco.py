"""COCO's images, fetched one by one into a folder laid out as COCO is: ``train2017/<id>.jpg``.

Data sets that refer to COCO need a thousand of its images, not 18 GB of archives. A folder that
already holds COCO works as it is.
"""

import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import requests
from tqdm.contrib.concurrent import thread_map

from cmrm_utils.sample import decode
from cmrm_utils.store import read_json, replacing, write_json

HOST = "https://s3.amazonaws.com/images.cocodataset.org"
"""COCO's own bucket. The name images.cocodataset.org has no certificate of its own."""


ABSENT = "absent.json"
"""The file beside the images that lists those that the host lacks or sends broken, and why."""


_WORKERS = 8


_TIMEOUT = 30.0


class _Failure(Exception):
    """An image that did not come.

    Args:
        why: in words.
        lacking: the host itself says that there is no such image, or sends it broken.
        final: asking again would get the same answer.
    """

    def __init__(self, why: str, *, lacking: bool = False, final: bool = False) -> None:
        super().__init__(why if lacking else f"not reached: {why}")
        self.lacking, self.final = lacking, final


def fetch(
    images: Iterable[str], folder: Path, *, host: str = HOST, tries: int = 4, wait: float = 1.0
) -> dict[str, str]:
    """Download the images that are missing here, with a progress bar.

    The host lacks an image only if the host itself says so: 403 or 404 with the marks of S3 (its
    ``x-amz-request-id`` or ``Server: AmazonS3`` header, or its XML error in the body, which must
    then be about the image and not, say, about the bucket). An image is broken there if a whole
    file of an image's content type does not decode. Anything else (a proxy's refusal, a login page
    or a redirect to one, an error of the server, a connection that drops) means that the image was
    not reached, and proves nothing.

    Args:
        images: paths as on the host, ``train2017/000000051977.jpg``.
        folder: where they are kept, under the same paths.
        host: where they come from.
        tries: how often each is asked for, unless the answer is final.
        wait: seconds before the second try, doubled with each further one.

    Returns:
        The reason for each image that did not come. Images that the host lacks or sends broken are
        also noted in the folder (:func:`absent`); those that were not reached are not.

    Raises:
        InputError: the folder cannot be written to.
    """
    todo = [image for image in dict.fromkeys(images) if not (folder / image).is_file()]
    with requests.Session() as session:

        def failure(image: str) -> _Failure | None:
            """Why an image did not come; one that comes takes its place."""
            for attempt in range(tries):
                try:
                    content = _image(session, f"{host}/{image}")
                    break
                except _Failure as error:
                    if error.final or attempt == tries - 1:
                        return error
                    time.sleep(wait * 2**attempt)
            with replacing(folder / image) as draft:
                draft.write_bytes(content)
            return None

        bar: Any = {"desc": "COCO", "unit": "image", "leave": False}
        failures = thread_map(failure, todo, max_workers=_WORKERS, **bar)
    failed = {image: error for image, error in zip(todo, failures, strict=True) if error}
    if todo:
        noted = {name: why for name, why in absent(folder).items() if name not in todo}
        noted |= {image: str(error) for image, error in failed.items() if error.lacking}
        write_json(folder / ABSENT, noted)
    return {image: str(error) for image, error in failed.items()}


def absent(folder: Path) -> dict[str, str]:
    """The images that the host lacked or sent broken in an earlier :func:`fetch`, and why.

    Raises:
        InputError: the file that notes them is broken.
    """
    path = folder / ABSENT
    return read_json(path) if path.is_file() else {}


def _image(session: requests.Session, address: str) -> bytes:
    """An image as the host sends it, if it decodes.

    Raises:
        _Failure: the host does not send it, or something else answers.
    """
    try:
        answer = session.get(address, timeout=_TIMEOUT, allow_redirects=False)
    except requests.RequestException as error:
        raise _Failure(f"network: {error}") from error
    status, headers = answer.status_code, answer.headers
    if status in (403, 404) and _lacks(answer):
        raise _Failure(f"HTTP {status}", lacking=True, final=True)
    if status != 200:
        raise _Failure(f"HTTP {status}", final=status < 500 and status not in (408, 429))
    try:
        decode(answer.content)
    except ValueError as error:
        kind = headers.get("Content-Type", "unknown content")
        whole = "Content-Length" in headers or "Transfer-Encoding" in headers
        if whole and kind.lower().startswith("image/"):
            raise _Failure(f"broken: {error}", lacking=True) from error
        raise _Failure(f"not an image, but {kind}: {error}") from error
    return answer.content


def _lacks(answer: requests.Response) -> bool:
    """Whether S3 itself says in an error that it has no such image."""
    xml = rb"\s*(?:<\?xml[^>]*>\s*)?<Error>.*<Code>(\w+)</Code>"
    if error := re.match(xml, answer.content, re.DOTALL):  # it may be the bucket that is not there
        return error[1] in (b"NoSuchKey", b"AccessDenied")
    return "x-amz-request-id" in answer.headers or answer.headers.get("Server") == "AmazonS3"
