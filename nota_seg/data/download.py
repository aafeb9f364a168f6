"""Fetch the publishers' archives: resumed where a transfer broke off, checked, and unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from util.errors import InputError, did_you_mean
from util.files import TEMPORARY

Progress = Callable[[int, int | None], object]  # bytes done, bytes in all if the server tells

_CHUNK = 1 << 18  # bytes
_TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Archive:
    """A publisher's zip file and the folder it unpacks to."""

    url: str
    folder: str
    md5: str

    @property
    def file(self) -> str:
        """Name of the zip file."""
        return self.url.rsplit("/", 1)[-1]


ARCHIVES = {
    "tiny-imagenet": Archive(
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "tiny-imagenet-200", "90528d7ca1a48142e341f4ef8d21d0de"
    ),
    "ade20k": Archive(
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        "ADEChallengeData2016",
        "7328b3957e407ddae1d3cbf487f149ef",
    ),
}


@dataclass(frozen=True)
class Downloaded:
    """Where the data is now, and whether anything had to be done.

    Attributes:
        path: The unpacked folder, or the archive with `unpack=False`.
        already: It was complete before.
        message: One line for the reader.
    """

    path: Path
    already: bool
    message: str


def download(
    name: str,
    output_dir: str | Path,
    *,
    url: str | None = None,
    sha256: str | None = None,
    md5: str | None = None,
    unpack: bool = True,
    retries: int = 5,
    wait: float = 2.0,
    progress: Progress | None = None,
) -> Downloaded:
    """Fetch a data set by name.

    A broken transfer leaves `<archive>.part`; the next call goes on from there.

    Args:
        name: A key of `ARCHIVES`.
        output_dir: Folder for the archive and the data.
        url: A mirror, instead of the publisher.
        sha256: Expected checksum, instead of the publisher's md5.
        md5: Likewise.
        unpack: Unpack the archive; it is kept beside the folder.
        retries: New attempts in a row that may bring nothing new.
        wait: Seconds before a new attempt.
        progress: Called with the bytes done and the bytes in all.

    Raises:
        InputError: Unknown name, refused address, wrong checksum, broken archive, or no connection; says what to do.
    """
    if name not in ARCHIVES:
        raise InputError(f"no data set {name!r} to download: {did_you_mean(name, ARCHIVES)}")
    known, output = ARCHIVES[name], Path(output_dir)
    archive, folder = output / known.file, output / known.folder
    if unpack and folder.is_dir():  # it took this name only when it was complete
        return Downloaded(folder, True, f"{folder} is already complete; nothing to do")
    checksum = ("sha256", sha256) if sha256 else ("md5", md5 or known.md5)
    output.mkdir(parents=True, exist_ok=True)
    there = archive.is_file()
    if there:
        _check_sum(archive, *checksum, advice=f"remove {archive} and run the command again")
    else:
        part = archive.with_name(archive.name + ".part")
        fetch(url or known.url, part, retries=retries, wait=wait, progress=progress)
        try:
            _check_sum(part, *checksum, advice="the partial file was removed; run the command again")
        except InputError:
            part.unlink()  # going on from wrong bytes can never end well
            raise
        os.replace(part, archive)
    if not unpack:
        state = "is already complete; nothing to do" if there else "is complete and its checksum is right"
        return Downloaded(archive, there, f"{archive} {state}")
    unzip(archive, folder)
    return Downloaded(folder, False, f"{folder} is ready; {archive} may be removed")


def fetch(url: str, part: Path, *, retries: int = 5, wait: float = 2.0, progress: Progress | None = None) -> None:
    """Bring `part` to the length of the file at `url`, from where it stands; see `download`."""
    best, failures, reason = _length(part), 0, ""
    while failures <= retries:
        if failures:
            time.sleep(wait)
        try:
            if _transfer(url, part, progress):
                return
            reason = "the server closed the connection early"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise InputError(f"{url}: the server answers {error.code} {error.reason}; check the address") from None
            reason = f"the server answers {error.code} {error.reason}"
        except ValueError as error:  # urllib's word for an address that is none
            raise InputError(f"{url}: not an address ({error})") from None
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        # Only bytes never had before count as progress: a server that cannot resume would keep us busy for ever.
        failures = 1 if _length(part) > best else failures + 1
        best = max(best, _length(part))
    raise InputError(
        f"{url}: broke off at {_length(part):,} bytes after {failures} attempts ({reason}); "
        f"run the same command again to go on, {part} is kept"
    )


def _transfer(url: str, part: Path, progress: Progress | None) -> bool:
    """One attempt; True when the file is complete."""
    have = _length(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # Nothing lies behind what we have: either it is all there, or it is not this file.
        total = _total_in(error.headers.get("Content-Range"))
        if total == have:
            return True
        part.unlink()
        return False
    with response:
        resumed = response.status == 206 and _starts_at(response.headers.get("Content-Range")) == have
        if response.status == 206 and not resumed:
            part.unlink(missing_ok=True)  # some other range than the one asked for
            return False
        length = response.headers.get("Content-Length")
        done = have if resumed else 0
        total = done + int(length) if length else None
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
    return total is None or done >= total


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _starts_at(content_range: str | None) -> int | None:
    found = re.match(r"bytes (\d+)-", content_range or "")
    return int(found[1]) if found else None


def _total_in(content_range: str | None) -> int | None:
    found = re.search(r"/(\d+)$", content_range or "")
    return int(found[1]) if found else None


def _check_sum(path: Path, kind: str, expected: str | None, advice: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, kind).hexdigest()
    if actual != str(expected).lower():
        raise InputError(f"{path}: {kind} is {actual}, expected {expected}; {advice}")


def unzip(archive: Path, folder: Path) -> None:
    """Unpack into a temporary sibling that becomes `folder`; an archive of one folder becomes that folder's content.

    Raises:
        InputError: Not a zip file, damaged, or with members that would land outside.
    """
    # Not util.files.whole_folder: it flushes file by file, which takes minutes for 100,000 small pictures, and an
    # unpacked archive can be unpacked again.
    for left in folder.parent.glob(f".{folder.name}{TEMPORARY}*"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}{TEMPORARY}{uuid.uuid4().hex[:8]}")
    try:
        with zipfile.ZipFile(archive) as content:
            for member in content.infolist():
                _refuse_outside(archive, member)
            content.extractall(temporary)
        entries = list(temporary.iterdir())
        inner = entries[0] if len(entries) == 1 and entries[0].is_dir() else temporary
        os.rename(inner, folder)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError) as error:
        raise InputError(f"{archive}: not a sound zip file ({error}); remove it and run the command again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_outside(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    link = stat.S_ISLNK(member.external_attr >> 16)
    if link or path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
        raise InputError(
            f"{archive}: the member {member.filename!r} would land outside the folder; do not use this file"
        )
