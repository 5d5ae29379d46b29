"""Published weights: a folder, or a repository of the Hugging Face Hub, to a folder on this machine.

One rule for every network: an existing folder is read as it is, without network; of a repository, what the local cache
holds is used as it is (`revision` pins what that may be), and only what is missing is downloaded, after the Hub has
answered once. An answer that does not come within `PATIENCE` seconds is an error that says what to do.
"""

import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError

from drifting.training.errors import TrainingError

PATIENCE = 4.0  # seconds until the first answer; downloads take as long as they take
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

Result = TypeVar("Result")


class WeightsError(TrainingError):
    """Published weights are missing, unreachable, incomplete or those of another network."""


def local_folder(
    name_or_folder: str | os.PathLike[str], *, files: Sequence[str], revision: str | None = None, setting: str = "path"
) -> Path:
    """The folder that holds `files`.

    Args:
        name_or_folder: an existing folder, or the id of a model repository, `owner/name`.
        files: what must be in it: file names or patterns, relative to the folder (`*` matches `/` as well);
            alternatives are separated by `|`, best first: only the first one that exists is downloaded.
        revision: branch, tag or commit of the repository; None is `main`. Has no effect on a folder.
        setting: name of the argument or configuration key, for messages.

    Raises:
        WeightsError: no such folder, no such repository or revision, no network, or a file is not in it.
    """
    given = os.fspath(name_or_folder)
    folder = Path(given).expanduser()
    if folder.is_dir():
        if missing := missing_files(file_names(folder), files):
            raise WeightsError(
                f"{setting}={given} has no file {listed(missing)}; it holds {listed(file_names(folder))}"
            )
        return folder
    if not HUB_ID.fullmatch(given):
        raise WeightsError(f"{setting}={given!r} is no existing folder, nor the owner/name of a Hub repository")
    return cached_folder(given, files, revision) or _downloaded(given, files, revision, setting)


def cached_folder(repository: str, files: Sequence[str], revision: str | None) -> Path | None:
    """What the local cache holds of it, if all files are there."""
    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        return None
    return None if missing_files(file_names(folder), files) else folder


def _downloaded(repository: str, files: Sequence[str], revision: str | None, setting: str) -> Path:
    def present() -> list[str]:
        info = HfApi().model_info(repository, revision=revision, timeout=PATIENCE)
        return [sibling.rfilename for sibling in info.siblings or []]

    try:
        names = _within(PATIENCE, present)
        missing = missing_files(names, files)
        wanted = _best(names, files)
        folder = None if missing else snapshot_download(repository, revision=revision, allow_patterns=wanted)
    except Exception as error:  # whatever the client raises (its HTTP library has changed twice): no files
        raise WeightsError(
            f"{setting}={repository} is no existing folder, and as a Hub repository it cannot be had: "
            f"{_reason(error)}. Where there is network, run `{_command(repository, files, revision)}`; "
            f"then set {setting}=FOLDER"
        ) from error
    if folder is None:
        raise WeightsError(f"{setting}={repository} has no file {listed(missing)}; it holds {listed(names)}")
    return Path(folder)


def _command(repository: str, files: Sequence[str], revision: str | None) -> str:
    """The command line that downloads the files, of alternatives the best."""
    best = [entry.split("|")[0] for entry in files]
    patterns = any("*" in name for name in best)
    wanted = " ".join(f"--include '{name}'" for name in best) if patterns else " ".join(best)
    at = f" --revision {revision}" if revision else ""
    return f"hf download {repository} {wanted}{at} --local-dir FOLDER"


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {PATIENCE:g} s"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and the local cache does not hold it"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def file_names(folder: Path) -> list[str]:
    """Every file, relative to the folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _best(names: Iterable[str], files: Sequence[str]) -> list[str]:
    """Of each entry's alternatives the first that exists."""
    known = list(names)
    chosen = (next((p for p in entry.split("|") if any(fnmatch(n, p) for n in known)), None) for entry in files)
    return [pattern for pattern in chosen if pattern is not None]


def missing_files(names: Iterable[str], files: Sequence[str]) -> list[str]:
    """Entries of `files`, as `local_folder` takes them, that none of the names serves."""
    known = list(names)
    return [entry for entry in files if not _best(known, [entry])]


def listed(names: Sequence[str], limit: int = 8) -> str:
    """The first names, and how many there are."""
    shown = ", ".join(name.replace("|", " or ") for name in names[:limit]) or "nothing"
    return shown if len(names) <= limit else f"{shown}, ... ({len(names)} files)"


def _within(seconds: float, call: Callable[[], Result]) -> Result:
    """The result of `call`, or its exception, or TimeoutError: a name server's silence is beyond any socket timeout."""
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # handed to the caller below
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError
    return outcome[0]


def load_complete(
    load: Callable[..., Any],
    folder: Path,
    *,
    setting: str,
    optional: str = "",
    **options: Any,
) -> Any:
    """A network of `transformers` or `diffusers` from `folder`, every weight of which comes from there.

    Both libraries only warn where a weight is missing and leave it random.

    Args:
        load: `from_pretrained` of the network's class.
        folder: as `local_folder` returned it.
        setting: name of the argument or configuration key, for messages.
        optional: prefix of weights that may be missing, because they are not used.
        options: further arguments of `load`.

    Raises:
        WeightsError: a damaged file, or weights that are missing, unknown or of another shape.
    """
    other = f"{setting}={folder} does not hold the network that its config.json describes"
    try:
        network, found = load(folder, local_files_only=True, output_loading_info=True, **options)
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:  # shapes that differ, a damaged file
        raise WeightsError(f"{other}: {error}") from error
    missing = sorted(key for key in found["missing_keys"] if not (optional and key.startswith(optional)))
    unknown = sorted(found["unexpected_keys"])
    if missing or unknown:
        raise WeightsError(f"{other}: it lacks {listed(missing)} and has unknown {listed(unknown)}")
    return network
