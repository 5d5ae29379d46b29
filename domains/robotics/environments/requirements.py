"""What a simulator needs of the machine: packages, versions that fit one another, an OpenGL library for pictures.

Whatever is missing or does not fit is a ConfigError of one line that names the fix.
"""

import ctypes
import importlib
import importlib.metadata
import logging
import os
import sys
from types import ModuleType

from drifting.training.errors import ConfigError

EXTRA = "pip install 'drifting-models[robotics]'"

# robosuite 1.5.2 with mujoco 3.10: mj_fullM has other arguments; with 4.0: no joint is of a type that it knows.
ROBOSUITE_VERSIONS = ((1, 5), (1, 6))
MUJOCO_VERSIONS = ((3, 3), (3, 10))

# Headless OpenGL on Linux, in order of preference: value of MUJOCO_GL, names of its library, Debian's package of it.
GL_LIBRARIES = {
    "egl": (("libEGL.so.1", "libEGL.so"), "libegl1"),
    "osmesa": (("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"), "libosmesa6"),
}
NO_GL = ("disable", "disabled", "off", "false", "0")


def simulator_package(name: str) -> ModuleType:
    """Import the module `name` of a simulator. ConfigError with the command that installs it if it is not there.

    An ImportError from inside an installed package is a ConfigError too and keeps its own words.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).partition(".")[0]
        raise ConfigError(f"this task needs the package {missing}, which is not installed: {EXTRA}") from error
    except ImportError as error:
        raise ConfigError(f"the package {name.partition('.')[0]} cannot be imported ({error}): {EXTRA}") from error


def robosuite_package(*, pictures: bool) -> ModuleType:
    """Import robosuite, quietly, after its version, mujoco's and the OpenGL library have been checked.

    `pictures`: whether anything will be rendered. Without, no OpenGL library is needed.
    """
    check_version("robosuite", *ROBOSUITE_VERSIONS)
    check_version("mujoco", *MUJOCO_VERSIONS)
    choose_gl(pictures=pictures)
    logger = logging.getLogger("robosuite_logs")
    if _only_errors not in logger.filters:
        # It warns at every import and reset; its level is set back when it is imported, a filter stays.
        logger.addFilter(_only_errors)
    return simulator_package("robosuite")


def check_version(package: str, first: tuple[int, ...], beyond: tuple[int, ...]) -> None:
    """ConfigError unless the installed version v of `package` has first <= v < beyond."""
    lowest, limit = (".".join(map(str, version)) for version in (first, beyond))
    fix = f"pip install '{package}>={lowest},<{limit}'"
    try:
        text = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"this task needs the package {package}, which is not installed: {EXTRA}") from None
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if not first <= numbers < beyond:
        raise ConfigError(f"{package} {text} does not work here, {lowest} <= version < {limit} does: {fix}")


def choose_gl(*, pictures: bool) -> None:
    """Set MUJOCO_GL, which mujoco reads once at its import, to what this machine has, unless the user has set it.

    ConfigError if what the user has set is not there, or if `pictures` are wanted and there is nothing.
    """
    if not sys.platform.startswith("linux"):
        return  # macOS and Windows bring theirs
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    if wanted in GL_LIBRARIES:
        if not _present(wanted):
            raise ConfigError(f"MUJOCO_GL={wanted}, but its library is missing: {_installation(wanted)}")
    elif wanted in NO_GL and pictures:
        raise ConfigError(f"MUJOCO_GL={wanted} forbids rendering, which this command needs: set MUJOCO_GL=egl")
    elif wanted == "":
        found = next(filter(_present, GL_LIBRARIES), None)
        if found is not None:
            os.environ["MUJOCO_GL"] = found
        elif pictures:
            raise ConfigError(f"no OpenGL library to render with: {_installation('egl')}")


def rendering_failed(error: Exception) -> ConfigError:
    """What to say when the library is there and makes no context."""
    backend = os.environ.get("MUJOCO_GL", "")
    other = "osmesa" if backend == "egl" else "egl"
    return ConfigError(
        f"cannot render with MUJOCO_GL={backend} ({error}): apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri, "
        f"or MUJOCO_GL={other}"
    )


def _present(backend: str) -> bool:
    for name in GL_LIBRARIES[backend][0]:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def _installation(backend: str) -> str:
    return f"apt-get install {GL_LIBRARIES[backend][1]} libgl1-mesa-dri, or set MUJOCO_GL to one that is installed"


def _only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
