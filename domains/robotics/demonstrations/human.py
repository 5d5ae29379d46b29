"""Demonstrations by people: a given file, robomimic's v1.5 datasets from the Hub, or PushT's published archive."""

import hashlib
import shutil
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from domains.robotics.demonstrations.cache import cache_folder, one_maker
from domains.robotics.demonstrations.config import DemosConfig
from domains.robotics.demonstrations.download import PATIENCE, download, file_sha256
from domains.robotics.demonstrations.episode import DemonstrationError
from domains.robotics.demonstrations.push_t_data import PUBLISHED_ACTIONS, actions_digest, is_push_t_folder
from domains.robotics.experts import has_expert
from domains.robotics.task import TaskConfig
from drifting.training.atomic_file import sync_folder, temporary_name

ROBOMIMIC = "robomimic/robomimic_datasets"  # a dataset repository; proficient-human demonstrations, low-dimensional
ROBOMIMIC_NAMES = {
    "Lift": "lift",
    "PickPlaceCan": "can",
    "NutAssemblySquare": "square",
    "ToolHang": "tool_hang",
    "TwoArmTransport": "transport",
}
PUSH_T_URL = "https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip"
PUSH_T_FOLDER = "pusht_cchi_v7_replay.zarr"


def otherwise(task: str) -> str:
    """What to do where a download fails, for the task of this name."""
    fetch = "Where there is network, fetch it, then give demos.path=FILE"
    return f"{fetch}; demos.source=scripted needs no download" if has_expert(task) else fetch


def human_demonstrations(task: TaskConfig, config: DemosConfig, *, progress: bool = True) -> Path:
    """The file or folder of `task`'s human demonstrations on this machine, downloaded and unpacked if need be.

    Raises:
        DemonstrationError: the given path does not exist, nothing is published for the task, or it cannot be had.
    """
    if config.path:
        path = Path(config.path).expanduser()
        if not path.exists():
            raise DemonstrationError(f"demos.path={config.path} does not exist")
        given_archive = task.simulator == "push_t" and path.suffix == ".zip"
        return unpacked_push_t(path, cache_folder(config.cache)) if given_archive else path
    folder = cache_folder(config.cache)
    if task.simulator == "push_t":
        return push_t_folder(folder, progress=progress)
    if task.simulator == "robosuite" and task.environment in ROBOMIMIC_NAMES:
        return robomimic_file(ROBOMIMIC_NAMES[task.environment], folder / "robomimic")
    arrays = [f"obs/{key} [T, {width}]" for key, width in task.observations.items()]
    arrays += [f"obs/{key} [T, {side}, {side}, 3]" for key, side in task.images.items()]
    scripted = ", or use demos.source=scripted" if has_expert(task.name) else ""
    raise DemonstrationError(
        f"no human demonstrations of task {task.name} can be downloaded; give your own by demos.path=FILE, an HDF5 "
        f"file of robomimic's schema: data/demo_<k>/ with {', '.join(arrays)} and actions [T, {task.action_dim}]"
        f"{scripted}"
    )


def push_t_folder(cache: Path, *, url: str = PUSH_T_URL, progress: bool = True) -> Path:
    """The zarr folder of the published archive, downloaded and unpacked once.

    Raises DemonstrationError where the archive is damaged or holds other data.
    """
    folder = cache / PUSH_T_FOLDER
    with one_maker(folder):
        if folder.is_dir():
            return folder
        archive = cache / "pusht.zip"
        if not archive.exists():
            download(url, archive, advice=otherwise("push_t"), progress=progress)
        unpack_published(archive, folder)
        archive.unlink()
    return folder


def unpacked_push_t(archive: Path, cache: Path) -> Path:
    """The zarr folder of a copy of the published archive, unpacked once into `cache`; errors as `push_t_folder`."""
    folder = cache / f"pusht-{file_sha256(archive)[:12]}" / PUSH_T_FOLDER
    with one_maker(folder):
        if not folder.is_dir():
            unpack_published(archive, folder)
    return folder


def unpack_published(archive: Path, folder: Path) -> None:
    """As `unpack`; DemonstrationError, and no folder, where the actions are not those that were published."""
    unpack(archive, folder)
    if (found := actions_digest(folder)) != PUBLISHED_ACTIONS:
        shutil.rmtree(folder)
        raise DemonstrationError(f"{archive} holds other actions than the published ones, sha256 {found}; delete it")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the archive's only folder of that name to `folder`, which appears when it is whole.

    Raises DemonstrationError where the archive is damaged or has no such folder.
    """
    temporary = temporary_name(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            if damaged := file.testzip():
                raise DemonstrationError(
                    f"{archive} is damaged: {damaged} has another checksum. Delete it and call again"
                )
            members = [name for name in file.namelist() if f"{folder.name}/" in name and "__MACOSX" not in name]
            file.extractall(temporary, members)
        found = next((place for place in temporary.rglob(folder.name) if is_push_t_folder(place)), None)
        if found is None:
            raise DemonstrationError(f"{archive} has no folder {folder.name} with data/action and meta/episode_ends")
        found.rename(folder)
        sync_folder(folder.parent)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DemonstrationError(f"{archive} is no whole zip archive: {error}. Delete it and call again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def robomimic_file(name: str, cache: Path, *, endpoint: str | None = None) -> Path:
    """Proficient-human, low-dimensional demonstrations of robomimic's task `name`, checked against the Hub's checksum.

    The Hub's client continues a cut download and keeps the file in `cache`, which is looked into first. `endpoint`: of
    a mirror of the Hub.

    Raises:
        DemonstrationError: the client is not installed, the Hub cannot be reached, or the file is damaged.
    """
    inside = f"v1.5/{name}/ph/low_dim_v15.hdf5"
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.constants import ENDPOINT
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise DemonstrationError(
            "demos.source=human needs the package huggingface_hub, which is not installed: "
            f"pip install 'drifting-models[robotics]'. {otherwise(name)}"
        ) from error
    options: dict[str, Any] = {
        "repo_id": ROBOMIMIC,
        "filename": inside,
        "repo_type": "dataset",
        "cache_dir": cache,
        "endpoint": endpoint,
    }
    try:
        return Path(hf_hub_download(**options, local_files_only=True))
    except LocalEntryNotFoundError:
        pass  # it is downloaded now
    try:
        # The client tries for half a minute before it says that there is no network.
        urllib.request.urlopen(f"{endpoint or ENDPOINT}/api/datasets/{ROBOMIMIC}", timeout=PATIENCE).close()
        path = Path(hf_hub_download(**options))
    except Exception as error:  # whatever the client raises (its HTTP library has changed twice): no file
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DemonstrationError(
            f"{inside} of {ROBOMIMIC} on the Hugging Face Hub cannot be had: {lines[0]}. {otherwise(name)}: "
            f"hf download {ROBOMIMIC} {inside} --repo-type dataset --local-dir FOLDER"
        ) from error
    # A large file's real name in the cache is its SHA-256, as the Hub states it.
    stated = path.resolve().name
    if len(stated) == hashlib.sha256().digest_size * 2 and (found := file_sha256(path)) != stated:
        path.resolve().unlink()
        raise DemonstrationError(
            f"{inside} of {ROBOMIMIC} arrived damaged: sha256 {found}, expected {stated}. Call again"
        )
    return path
