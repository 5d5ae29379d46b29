"""Published weights that are not on this machine: found without loading or downloading anything."""

import os
from collections.abc import Sequence
from pathlib import Path

from domains.imagenet.hub import HUB_ID, cached_folder, file_names, listed, missing_files
from domains.imagenet.missing import Missing


def missing_weights(
    setting: str,
    name_or_folder: str | os.PathLike[str],
    *,
    files: Sequence[str],
    revision: str | None = None,
    command: str | None = None,
) -> list[Missing]:
    """What `local_folder` would not find, or would have to download: nothing, or one thing.

    Args:
        setting: key that names the weights.
        name_or_folder: a folder, or the id of a Hub repository.
        files: as of `local_folder`.
        revision: of the repository.
        command: what makes the weights; None is the download.
    """
    given = os.fspath(name_or_folder)
    folder = Path(given).expanduser()
    if folder.is_dir():
        absent = missing_files(file_names(folder), files)
        if not absent:
            return []
        return [
            Missing(setting, f"{given} has no file {listed(absent)}", command or f"choose another {setting}=FOLDER")
        ]
    if not HUB_ID.fullmatch(given):
        what = f"{given!r} is no existing folder, nor the owner/name of a Hub repository"
        return [Missing(setting, what, command or f"choose another {setting}=FOLDER")]
    if cached_folder(given, files, revision) is not None:
        return []
    if command is not None:
        return [Missing(setting, f"no folder {given}", command)]
    best = [entry.split("|")[0] for entry in files]
    wanted = " ".join(f"--include '{name}'" for name in best) if any("*" in name for name in best) else " ".join(best)
    at = f" --revision {revision}" if revision else ""
    what = f"{given} is no folder, and the Hub's cache on this machine does not hold it"
    return [Missing(setting, what, f"hf download {given} {wanted}{at}")]
