"""Which latents a masked auto-encoder was pre-trained on: its features are of that basis and scale alone.

The run keeps it as latents.json, for its store may have been written anew since.
"""

import json
import math
from pathlib import Path
from typing import Any

from domains.imagenet.data.image_data import ImageData
from domains.imagenet.data.latent_store import SAME, LatentStore
from domains.imagenet.encoders.section import EncoderSection
from domains.imagenet.mae_training import MaeTrainingConfig, pretraining_command
from drifting.training.atomic_file import replace_text
from drifting.training.errors import ConfigError
from drifting.training.run_dir import RESOLVED, load_config

RECORD = "latents.json"


def record_latents(run_dir: Path, data: ImageData) -> None:
    """Keep in a pre-training run which latents these are; nothing of pixels."""
    if isinstance(data, LatentStore):
        replace_text(run_dir / RECORD, json.dumps(data.origin, indent=2) + "\n")


def refuse_other_latents(section: EncoderSection, data: ImageData) -> str:
    """What is not known of the auto-encoder's latents, for the user to read; empty where all is well.

    Raises:
        ConfigError: `section.run` was pre-trained on other latents than `data`, or on pixels where these are latents.
    """
    if "mae" not in section.kinds or not section.run:
        return ""
    run_dir = Path(section.run)
    trained = load_config(run_dir, MaeTrainingConfig).data.kind
    latents = isinstance(data, LatentStore)
    if not latents and trained != "latents":
        return ""
    command = f"{pretraining_command(run_dir)} (with the other settings of its {RESOLVED})"
    if not isinstance(data, LatentStore) or trained != "latents":
        differing = [f"data.kind={trained}, these are {'latents' if latents else 'pixels'}"]
    elif (run_dir / RECORD).is_file():
        differing = _differences(json.loads((run_dir / RECORD).read_text()), data.origin)
    else:
        return (
            f"encoder.run={run_dir} does not say which latents it was pre-trained on: {RECORD} is missing, as in older "
            f"runs. Its command writes that, or refuses latents that were encoded anew since: {command}"
        )
    if differing:
        raise ConfigError(
            f"encoder.run={run_dir} was pre-trained on other samples than those of data.path: {'; '.join(differing)}. "
            f"Move it away and pre-train it anew: {command}"
        )
    return ""


def _differences(trained: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """What differs, in words; a tokenizer that one of the two does not name is no difference."""
    made, now = trained["tokenizer"], ours["tokenizer"]
    differing = [
        f"{key} {trained[key]:g}, now {ours[key]:g}"
        for key in ("scale", "shift")
        if not math.isclose(trained[key], ours[key], rel_tol=SAME, abs_tol=SAME)
    ]
    if made and now and made["sha256"] != now["sha256"]:
        names = [f"{each['kind']} of {each['path']}, sha256 {each['sha256'][:8]}" for each in (made, now)]
        differing.insert(0, f"the latents of another tokenizer ({names[0]}; now {names[1]})")
    return differing
