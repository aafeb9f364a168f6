"""Downloads against a server on this machine that resumes, does not, or hangs up."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nota_seg.data.download import ARCHIVES, download
from util.errors import InputError


def zipped(members: dict[str, bytes], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if link is not None:
            info = zipfile.ZipInfo(link)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc")
    return buffer.getvalue()


CONTENT = zipped({"tiny-imagenet-200/wnids.txt": b"n1\n", "tiny-imagenet-200/noise": bytes(range(256)) * 4000})


class Server(ThreadingHTTPServer):
    content = CONTENT
    ranges = True  # honours Range
    drop_after: int | None = None  # bytes of every answer before it hangs up
    drops = 0  # how many answers break off
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/tiny-imagenet-200.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if wanted and server.ranges else 200)
        if wanted and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.drop_after is not None and server.drops > 0:
            server.drops -= 1
            body = body[: server.drop_after]
        self.wfile.write(body)
        self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def get(server: Server, folder: Path, **options: object):  # type: ignore[no-untyped-def]
    md5 = hashlib.md5(server.content).hexdigest()
    return download("tiny-imagenet", folder, **({"url": server.url, "md5": md5, "wait": 0.0} | options))


def part(folder: Path) -> Path:
    return folder / "tiny-imagenet-200.zip.part"


def complete(folder: Path) -> None:
    assert (folder / "tiny-imagenet-200/wnids.txt").read_bytes() == b"n1\n"
    assert sorted(p.name for p in folder.iterdir()) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]


def test_fresh_then_nothing_to_do(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    result = get(server, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert not result.already and result.path == tmp_path / "tiny-imagenet-200" and "ready" in result.message
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and seen == sorted(seen)
    complete(tmp_path)
    asked = len(server.asked)
    again = get(server, tmp_path)
    assert again.already and "already complete" in again.message and len(server.asked) == asked
    (tmp_path / "tiny-imagenet-200/wnids.txt").unlink()
    (tmp_path / "tiny-imagenet-200/noise").unlink()
    (tmp_path / "tiny-imagenet-200").rmdir()
    assert not get(server, tmp_path).already and len(server.asked) == asked  # from the archive that is there
    complete(tmp_path)


def test_archive_alone_with_sha256(server: Server, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    result = get(server, tmp_path, sha256=sha256.upper(), unpack=False)
    assert result.path.read_bytes() == CONTENT
    assert get(server, tmp_path, sha256=sha256, unpack=False).already


def test_resumes_where_it_stopped(server: Server, tmp_path: Path) -> None:
    part(tmp_path).write_bytes(CONTENT[:1000])
    get(server, tmp_path)
    assert server.asked == ["bytes=1000-"]
    complete(tmp_path)


def test_server_without_ranges_begins_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    part(tmp_path).write_bytes(b"x" * 1000)
    get(server, tmp_path)
    complete(tmp_path)


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 10])
def test_nothing_left_to_send(size: int, server: Server, tmp_path: Path) -> None:
    part(tmp_path).write_bytes((CONTENT + b"0" * 10)[:size])
    get(server, tmp_path)
    complete(tmp_path)


def test_hangs_up_and_goes_on(server: Server, tmp_path: Path) -> None:
    server.drop_after, server.drops = 300_000, 3
    get(server, tmp_path, retries=1)  # each attempt brings something new
    assert server.asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    complete(tmp_path)


def test_hangs_up_for_good(server: Server, tmp_path: Path) -> None:
    server.drop_after, server.drops, server.ranges = 5000, 99, False
    with pytest.raises(InputError, match=r"broke off at 5,000 bytes .*run the same command again") as caught:
        get(server, tmp_path, retries=3)
    assert len(server.asked) == 4 and "\n" not in str(caught.value) and part(tmp_path).stat().st_size == 5000
    server.drops, server.ranges = 0, True
    get(server, tmp_path)
    assert server.asked[-1] == "bytes=5000-"
    complete(tmp_path)


def test_wrong_checksum(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"md5 is .* expected 00"):
        get(server, tmp_path, md5="00")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(b"other")
    with pytest.raises(InputError, match=r"remove .*tiny-imagenet-200\.zip"):
        get(server, tmp_path)


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (503, 3)])
def test_refusals(status: int, asked: int, server: Server, tmp_path: Path) -> None:
    server.status = status
    with pytest.raises(InputError, match=str(status)):
        get(server, tmp_path, retries=2)
    assert len(server.asked) == asked


def test_no_connection_bad_address_and_unknown_name(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run the same command again"):
        get(server, tmp_path, url="http://127.0.0.1:9/x.zip", retries=0)
    with pytest.raises(InputError, match="not an address"):
        get(server, tmp_path, url="x.zip")
    with pytest.raises(InputError, match="did you mean 'ade20k'"):
        download("ade2k", tmp_path)
    assert all(len(archive.md5) == 32 and archive.file.endswith(".zip") for archive in ARCHIVES.values())


@pytest.mark.parametrize(
    "content",
    [
        zipped({"tiny-imagenet-200/a": b"", "../outside": b"x"}),
        zipped({"/absolute": b"x"}),
        zipped({"a\\..\\..\\outside": b"x"}),
        zipped({"a": b""}, link="tiny-imagenet-200/link"),
    ],
)
def test_members_that_lead_outside(content: bytes, server: Server, tmp_path: Path) -> None:
    server.content = content
    with pytest.raises(InputError, match="would land outside"):
        get(server, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny-imagenet-200.zip"]


def test_archives_without_a_folder_and_broken_ones(server: Server, tmp_path: Path) -> None:
    server.content = zipped({"wnids.txt": b"n1\n", "train/a.JPEG": b""})
    assert (get(server, tmp_path / "a").path / "train/a.JPEG").is_file()
    server.content = CONTENT[:5000]
    with pytest.raises(InputError, match="not a sound zip file"):
        get(server, tmp_path / "b")
