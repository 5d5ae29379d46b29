import importlib.metadata
import os
import subprocess
import sys

import pytest

from domains.robotics.environments import requirements
from domains.robotics.environments.requirements import check_version, choose_gl, robosuite_package, simulator_package
from drifting.training.errors import ConfigError


def test_a_missing_package_names_the_extra():
    with pytest.raises(
        ConfigError, match=r"needs the package no_such_simulator.*pip install 'drifting-models\[robotics\]'"
    ):
        simulator_package("no_such_simulator.envs")


def test_a_missing_dependency_of_a_package_is_named_itself(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="needs the package no_such_dependency"):
        simulator_package("half_installed")


@pytest.mark.parametrize(
    ("installed", "fits"), [("3.2.7", False), ("3.3.0", True), ("3.9.0", True), ("3.10.0", False), ("4.0.0", False)]
)
def test_mujoco_must_be_in_the_range_that_robosuite_works_with(monkeypatch, installed, fits):
    monkeypatch.setattr(importlib.metadata, "version", lambda package: installed)
    if fits:
        check_version("mujoco", *requirements.MUJOCO_VERSIONS)
    else:
        with pytest.raises(ConfigError, match=rf"mujoco {installed} does not work.*pip install 'mujoco>=3\.3,<3\.10'"):
            check_version("mujoco", *requirements.MUJOCO_VERSIONS)


def test_without_robosuite_the_extra_is_named(monkeypatch):
    def version(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(
        ConfigError, match=r"robosuite, which is not installed: pip install 'drifting-models\[robotics\]'"
    ):
        robosuite_package(pictures=False)


@pytest.fixture
def linux(monkeypatch):
    """A Linux machine on which the named OpenGL libraries are installed, and MUJOCO_GL is as given."""

    def machine(*installed, mujoco_gl=None):
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(requirements, "_present", lambda backend: backend in installed)
        if mujoco_gl is None:
            monkeypatch.delenv("MUJOCO_GL", raising=False)
        else:
            monkeypatch.setenv("MUJOCO_GL", mujoco_gl)

    return machine


@pytest.mark.parametrize(("installed", "chosen"), [(("egl", "osmesa"), "egl"), (("osmesa",), "osmesa")])
def test_the_library_that_is_there_is_chosen(linux, installed, chosen):
    linux(*installed)
    choose_gl(pictures=True)
    assert os.environ["MUJOCO_GL"] == chosen


def test_no_library_is_needed_without_pictures(linux):
    linux()
    choose_gl(pictures=False)
    assert "MUJOCO_GL" not in os.environ


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (None, "no OpenGL library to render with: apt-get install libegl1"),
        ("egl", "MUJOCO_GL=egl, but its library is missing: apt-get install libegl1"),
        ("osmesa", "MUJOCO_GL=osmesa, but its library is missing: apt-get install libosmesa6"),
        ("off", "forbids rendering"),
    ],
)
def test_a_missing_library_names_its_package(linux, wanted, said):
    linux(mujoco_gl=wanted)
    with pytest.raises(ConfigError, match=said):
        choose_gl(pictures=True)


def test_the_users_choice_stands(linux):
    linux("egl", "osmesa", mujoco_gl="osmesa")
    choose_gl(pictures=True)
    assert os.environ["MUJOCO_GL"] == "osmesa"


def test_modules_are_imported_without_a_simulator():
    """What a configuration or a policy imports must not load robosuite, mujoco or h5py."""
    program = (
        "import sys, domains.robotics.rotations, domains.robotics.environments.env_args, domains.robotics.experts, "
        "domains.robotics.environments.requirements; print([name for name in ('robosuite', 'mujoco', 'pybullet', "
        "'gym_pusht', 'h5py', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
