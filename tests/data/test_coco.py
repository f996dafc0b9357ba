import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from PIL import Image

from cmrm_utils import InputError
from cmrm_utils.data import coco


def jpeg(colour):
    file = BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "jpeg")
    return file.getvalue()


GOOD = jpeg((200, 30, 30))

XML = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>'
PAGE = b"<html>Sign in to the network</html>"

ANSWERS = {  # status, headers, body
    "gone.jpg": (404, {"x-amz-request-id": "1"}, b""),
    "denied.jpg": (403, {"Server": "AmazonS3"}, b""),
    "xml.jpg": (403, {}, XML),
    "no-bucket.jpg": (404, {"Server": "AmazonS3"}, XML.replace(b"AccessDenied", b"NoSuchBucket")),
    "closed.jpg": (403, {"x-amz-request-id": "1"}, XML.replace(b"Access", b"AllAccessDisabled")),
    "cut.jpg": (200, {"Content-Type": "image/jpeg"}, GOOD[:-200]),
    "proxy.jpg": (403, {"Server": "squid"}, b"<html>Access denied by policy</html>"),
    "missing-page.jpg": (404, {}, PAGE),
    "login.jpg": (302, {"Location": "/login.html"}, b""),
    "moved.jpg": (307, {"Location": "/good.jpg"}, b""),
    "proxy-login.jpg": (407, {"Proxy-Authenticate": "Basic"}, b""),
    "page.jpg": (200, {"Content-Type": "text/html"}, PAGE),
    "empty.jpg": (200, {}, b""),
    "down.jpg": (503, {"Server": "AmazonS3"}, XML),
    "busy.jpg": (429, {}, b""),
    "unlimited.jpg": (200, {"Content-Type": "image/jpeg", "Content-Length": None}, GOOD[:-200]),
}


@pytest.fixture
def host():
    """A host of images on this machine; ``asked`` counts requests by image."""
    asked = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rsplit("/", 1)[1]
            asked[name] += 1
            status, headers, sent = ANSWERS.get(name, (200, {}, GOOD))
            headers = {"Content-Length": str(len(sent)), **headers}
            if name == "flaky.jpg" and asked[name] < 3:
                status = 503
            if name == "once-cut.jpg" and asked[name] == 1:
                sent = GOOD[:-200]  # a connection that drops: fewer bytes than announced
            self.send_response_only(status)
            for header, value in headers.items():
                if value is not None:
                    self.send_header(header, value)
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = asked
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(host, folder, *names, **settings):
    images = [f"train2017/{name}" for name in names]
    return coco.fetch(images, folder, host=host.url, wait=0, **settings)


def test_good_images_are_kept_as_they_came(host, tmp_path):
    assert fetch(host, tmp_path, "a.jpg", "b.jpg", "a.jpg") == {}
    for name in ("a.jpg", "b.jpg"):
        assert (tmp_path / "train2017" / name).read_bytes() == GOOD
    assert host.asked == {"a.jpg": 1, "b.jpg": 1}
    assert coco.absent(tmp_path) == {}


def test_what_is_there_is_not_asked_for_again(host, tmp_path):
    fetch(host, tmp_path, "a.jpg")
    assert fetch(host, tmp_path, "a.jpg", "b.jpg") == {}
    assert host.asked == {"a.jpg": 1, "b.jpg": 1}


@pytest.mark.parametrize("name", ["flaky.jpg", "once-cut.jpg"])
def test_a_flaky_host_is_asked_again(host, tmp_path, name):
    assert fetch(host, tmp_path, name) == {}
    assert (tmp_path / "train2017" / name).read_bytes() == GOOD
    assert host.asked[name] == (3 if name == "flaky.jpg" else 2)


@pytest.mark.parametrize(
    ("name", "why", "asked"),
    [
        ("gone.jpg", "HTTP 404", 1),
        ("denied.jpg", "HTTP 403", 1),
        ("xml.jpg", "HTTP 403", 1),
        ("cut.jpg", "broken: no readable image", 3),
    ],
)
def test_what_the_host_lacks_is_reported_and_noted(host, tmp_path, name, why, asked):
    failed = fetch(host, tmp_path, "a.jpg", name, tries=3)
    assert list(failed) == [f"train2017/{name}"]
    assert why in failed[f"train2017/{name}"]
    assert coco.absent(tmp_path) == failed
    assert sorted(path.name for path in (tmp_path / "train2017").iterdir()) == ["a.jpg"]
    assert host.asked[name] == asked


@pytest.mark.parametrize(
    ("name", "why", "asked"),
    [
        ("proxy.jpg", "HTTP 403", 1),
        ("no-bucket.jpg", "HTTP 404", 1),
        ("closed.jpg", "HTTP 403", 1),
        ("missing-page.jpg", "HTTP 404", 1),
        ("login.jpg", "HTTP 302", 1),
        ("moved.jpg", "HTTP 307", 1),
        ("proxy-login.jpg", "HTTP 407", 1),
        ("page.jpg", "not an image, but text/html", 2),
        ("empty.jpg", "not an image", 2),
        ("down.jpg", "HTTP 503", 2),
        ("busy.jpg", "HTTP 429", 2),
        ("unlimited.jpg", "no readable image", 2),
    ],
)
def test_what_was_not_reached_is_reported_but_not_noted(host, tmp_path, name, why, asked):
    """A proxy's page or a server's fault is no proof that there is no such image."""
    failed = fetch(host, tmp_path, "a.jpg", name, tries=2)
    assert list(failed) == [f"train2017/{name}"]
    assert failed[f"train2017/{name}"].startswith("not reached: ")
    assert why in failed[f"train2017/{name}"]
    assert coco.absent(tmp_path) == {}
    assert sorted(path.name for path in (tmp_path / "train2017").iterdir()) == ["a.jpg"]
    assert host.asked[name] == asked
    assert not {"login.html", "good.jpg"} & set(host.asked)


def test_a_host_that_does_not_answer_is_not_reached(host, tmp_path):
    host.server_close()
    failed = fetch(host, tmp_path, "a.jpg", tries=2)
    assert failed["train2017/a.jpg"].startswith("not reached: network")
    assert coco.absent(tmp_path) == {}


def test_a_folder_that_cannot_be_written_is_named(host, tmp_path):
    (tmp_path / "train2017").write_text("no folder")
    with pytest.raises(InputError, match=r"train2017/a\.jpg: cannot be written"):
        fetch(host, tmp_path, "a.jpg")


def test_a_noted_image_that_comes_at_last_is_noted_no_more(host, tmp_path):
    noted = {"train2017/a.jpg": "HTTP 404", "train2017/z.jpg": "HTTP 404"}
    (tmp_path / coco.ABSENT).write_text(json.dumps(noted))
    assert fetch(host, tmp_path, "a.jpg") == {}
    assert coco.absent(tmp_path) == {"train2017/z.jpg": "HTTP 404"}


def test_the_default_host_is_encrypted():
    assert coco.HOST.startswith("https://")
