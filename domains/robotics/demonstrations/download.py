"""One file over HTTP: continued where it was cut, checked, and only then given its name."""

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from domains.robotics.demonstrations.episode import DemonstrationError
from drifting.training.atomic_file import replace_text, sync_folder

PATIENCE = 20.0  # seconds without a byte
TRIES = 5  # in a row without a byte more than before
PAUSE = 0.1  # seconds before the next try, doubled by every vain one
PIECE = 1 << 18


def download(url: str, path: Path, *, sha256: str = "", advice: str = "", progress: bool = True) -> Path:
    """Fetch `url` into `path`; what an earlier, cut download left is continued, if the server still has the same file.

    Args:
        url: http or https.
        path: the file; while it grows it is called `<path>.part`.
        sha256: of the whole file, if known. Without it, its length alone is checked.
        advice: what else the user can do, appended to errors.
        progress: show a bar on stderr.

    Raises:
        DemonstrationError: no connection, a refusal, an incomplete or another file; names the URL. What has arrived
            stays for the next call, unless it is another file.
    """
    part, notes = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            total = _continue(url, part, notes, progress)
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            final = isinstance(error, urllib.error.HTTPError) and error.code < 500
            failures = failures + 1 if not part.exists() or part.stat().st_size <= before else 0
            if final or failures >= TRIES:
                raise DemonstrationError(f"{url} cannot be downloaded: {_reason(error)}. {advice}".strip()) from error
            time.sleep(PAUSE * 2**failures)
            continue
        have = part.stat().st_size
        if total is None or have == total:
            break
        failures = failures + 1 if have <= before else 0
        if failures >= TRIES:
            raise DemonstrationError(
                f"{url} was cut after {have} of {total} bytes; call again to continue. {advice}".strip()
            )
    if sha256 and (found := file_sha256(part)) != sha256:
        part.unlink()
        notes.unlink(missing_ok=True)
        raise DemonstrationError(f"{url} is another file: sha256 {found}, expected {sha256}. {advice}".strip())
    part.replace(path)
    notes.unlink(missing_ok=True)
    sync_folder(path.parent)
    return path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _continue(url: str, part: Path, notes: Path, progress: bool) -> int | None:
    """Append what the server sends to `part` until the connection ends; the length that the file should have.

    The validator of the first answer (its ETag or date) goes back with If-Range: another version of the file is sent
    from its beginning, never appended.
    """
    have, validator = part.stat().st_size if part.exists() else 0, _validator(notes)
    request = urllib.request.Request(url, headers={"User-Agent": "drifting-models", "Accept-Encoding": "identity"})
    if have and validator:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)
    try:
        response: Any = urllib.request.urlopen(request, timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            # Nothing is left of the file, or it is shorter than what we have: its length is in the answer.
            if _total(error.headers.get("Content-Range")) == have:
                return have
            part.unlink()
            raise http.client.HTTPException("what had arrived is longer than the file; it starts anew") from error
        raise
    with response:
        continued = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if continued and not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            raise http.client.HTTPException(f"answered with the range {response.headers.get('Content-Range')}")
        start = have if continued else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        if not continued:
            tag = response.headers.get("ETag") or ""
            # A weak tag may stand for different bytes.
            replace_text(
                notes, json.dumps("" if tag.startswith("W/") else tag or response.headers.get("Last-Modified"))
            )
        bar = tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=url.rpartition("/")[2], disable=not progress
        )
        with part.open("ab" if continued else "wb") as file, bar:
            while piece := response.read(PIECE):
                file.write(piece)
                bar.update(len(piece))
    return total


def _validator(notes: Path) -> str:
    try:
        return str(json.loads(notes.read_text()) or "")
    except (FileNotFoundError, ValueError):
        return ""


def _total(content_range: str | None) -> int:
    number = (content_range or "").rpartition("/")[2]
    return int(number) if number.isdigit() else -1


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    reason = getattr(error, "reason", error)
    return (
        f"no connection ({reason})" if isinstance(error, urllib.error.URLError) else f"{type(error).__name__}: {reason}"
    )
