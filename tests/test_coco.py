import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from PIL import Image

from cmrm_utils import coco


def jpeg(colour):
    file = BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "jpeg")
    return file.getvalue()


GOOD = jpeg((200, 30, 30))


@pytest.fixture
def host():
    """A host of images on this machine; ``asked`` counts requests by image."""
    asked = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rsplit("/", 1)[1]
            asked[name] += 1
            if name == "gone.jpg":
                self.send_error(404)
            elif name == "denied.jpg":
                self.send_error(403)
            elif name == "down.jpg" or (name == "flaky.jpg" and asked[name] < 3):
                self.send_error(503)
            else:
                sent = {"cut.jpg": GOOD[:-200], "page.jpg": b"<html>busy</html>"}.get(name, GOOD)
                if name == "once-cut.jpg" and asked[name] == 1:
                    sent = GOOD[:-200]
                self.send_response(200)
                # A connection that drops: fewer bytes than announced.
                size = len(GOOD) if name == "once-cut.jpg" else len(sent)
                self.send_header("Content-Length", str(size))
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
        ("cut.jpg", "no readable image", 3),
        ("page.jpg", "no readable image", 3),
    ],
)
def test_what_the_host_lacks_is_reported_and_noted(host, tmp_path, name, why, asked):
    failed = fetch(host, tmp_path, "a.jpg", name, tries=3)
    assert list(failed) == [f"train2017/{name}"]
    assert why in failed[f"train2017/{name}"]
    assert coco.absent(tmp_path) == failed
    assert sorted(path.name for path in (tmp_path / "train2017").iterdir()) == ["a.jpg"]
    assert host.asked[name] == asked


def test_a_network_fault_is_reported_but_is_no_proof_of_absence(host, tmp_path):
    failed = fetch(host, tmp_path, "down.jpg", tries=2)
    assert "network" in failed["train2017/down.jpg"]
    assert host.asked["down.jpg"] == 2
    assert coco.absent(tmp_path) == {}
    host.server_close()
    failed = fetch(host, tmp_path, "a.jpg", tries=2)
    assert "network" in failed["train2017/a.jpg"]


def test_a_noted_image_that_comes_at_last_is_noted_no_more(host, tmp_path):
    noted = {"train2017/a.jpg": "HTTP 404", "train2017/z.jpg": "HTTP 404"}
    (tmp_path / coco.ABSENT).write_text(json.dumps(noted))
    assert fetch(host, tmp_path, "a.jpg") == {}
    assert coco.absent(tmp_path) == {"train2017/z.jpg": "HTTP 404"}


def test_the_default_host_is_encrypted():
    assert coco.HOST.startswith("https://")
