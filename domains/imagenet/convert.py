"""Weights that others published, and those of runs, as a folder of ours; ours as the authors' files.

    python -m domains.imagenet.convert source=Goodeat/drifting/latent_L_sota out=weights/L2   the authors', from the Hub
    python -m domains.imagenet.convert source=downloads/latent_L_sota out=weights/L2          from their two files
    python -m domains.imagenet.convert source=downloads/mae_latent_640 out=weights/mae640 encoder_only=true
    python -m domains.imagenet.convert source=state_00200000.pt out=weights/wflow-B2          a checkpoint of W-Flow
    python -m domains.imagenet.convert source=runs/latent_b2 decay=0.9999 out=weights/B2      an average of a run
    python -m domains.imagenet.convert source=runs/mae_latent_640 out=weights/mae640 encoder_only=true
    python -m domains.imagenet.convert source=weights/L2 out=back to=flax                     ours to the authors' files

Afterwards `DiTGenerator.from_pretrained("weights/L2")`, or MaskedAutoencoder for an auto-encoder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from domains.imagenet.config import CONFIGS, ImagenetConfig
from domains.imagenet.flax_artefact import METADATA, PARAMETERS, is_artefact, read_artefact, write_artefact
from domains.imagenet.generator import DiTGenerator
from domains.imagenet.hub import WeightsError, local_folder
from domains.imagenet.mae import MaskedAutoencoder
from domains.imagenet.mae_training import MaeTrainingConfig, load_mae
from domains.imagenet.pretrained import CONFIG, Pretrained, read_json
from domains.imagenet.sampling import load_generator
from domains.imagenet.wflow import read_wflow
from drifting.training.command_line import command
from drifting.training.config import require
from drifting.training.run_dir import RESOLVED, load_config

DTYPES = {"": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class ConvertConfig:
    """What to convert, and into what.

    `source`: a folder with the authors' ema_params.msgpack and metadata.json, a folder of ours, a run directory of
    `train` or `pretrain_mae`, a W-Flow checkpoint (.pt), or `owner/repository/name` on the Hub; `revision` is a branch,
    tag or commit there. `decay`: which average of a run, null the first of its ema.decays. `to`: ours or flax.
    `encoder_only` leaves out the decoder of an auto-encoder, which features do not need. `dtype` of the written
    numbers: float32, bfloat16 or float16; empty keeps theirs.
    """

    source: str
    out: str
    to: str = "ours"
    encoder_only: bool = False
    dtype: str = ""
    revision: str | None = None
    decay: float | None = None

    def __post_init__(self) -> None:
        require(self.source != "", "source", "a folder, a .pt file or owner/repository/name", self.source)
        require(self.out != "", "out", "a new or empty folder", self.out)
        require(self.to in ("ours", "flax"), "to", "ours or flax", self.to)
        require(self.dtype in DTYPES, "dtype", "float32, bfloat16, float16 or empty", self.dtype)


@command(ConvertConfig, "imagenet_convert", configs=CONFIGS)
def main(config: ConvertConfig) -> None:
    """Read, check and write."""
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WeightsError(f"out={out} must be a new or empty folder; it holds something. Choose another")
    network, source = read_network(local_source(config), config.encoder_only, config.decay)
    dtype = DTYPES[config.dtype]
    if config.to == "ours":
        network.save_pretrained(out, dtype=dtype, source=source | {"converted_from": config.source})
    else:
        write_artefact(network if dtype is None else network.to(dtype), out, source)
    count = sum(p.numel() for p in network.parameters()) / 1e6
    print(f"{network.kind} of {count:.1f} M parameters from {config.source}, all of them named and in shape: {out}")


def local_source(config: ConvertConfig) -> Path:
    """The folder or file on this machine.

    Raises:
        WeightsError: it does not exist and is nothing on the Hub, or the Hub cannot be reached; says what to do.
    """
    path = Path(config.source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return _only_network_in(path)
    owner, _, rest = config.source.partition("/")
    repository, _, name = rest.partition("/")
    if path.is_absolute() or not (owner and repository and name):
        raise WeightsError(f"source={config.source} is no folder or file, nor owner/repository/name on the Hub")
    checkpoint = name.endswith(".pt")
    inside = name if checkpoint else f"models/*/jax/{name}"
    files = [inside] if checkpoint else [f"{inside}/{METADATA}", f"{inside}/{PARAMETERS}"]
    folder = local_folder(f"{owner}/{repository}", files=files, revision=config.revision, setting="source")
    return folder / name if checkpoint else next(folder.glob(f"{inside}/{PARAMETERS}")).parent


def _only_network_in(folder: Path) -> Path:
    """The folder itself, or the one network in a downloaded repository or a training run of the authors."""
    if is_artefact(folder) or (folder / CONFIG).is_file() or (folder / RESOLVED).is_file():
        return folder
    artefacts = (f"params_ema/{PARAMETERS}", f"models/*/jax/*/{PARAMETERS}")
    found = [path.parent for pattern in artefacts for path in folder.glob(pattern)]
    found += folder.glob("checkpoints/*/state_*.pt")
    if len(found) > 1:
        raise WeightsError(
            f"source={folder} holds several networks; choose one of {', '.join(map(str, sorted(found)))}"
        )
    return found[0] if found else folder


def read_network(
    path: Path, encoder_only: bool = False, decay: float | None = None
) -> tuple[Pretrained, dict[str, Any]]:
    """The network, and what is known of its origin; `decay` chooses among the averages of a run.

    Raises:
        WeightsError: none of the known layouts, or damaged; names the file.
        TrainingError: a run without the average, without a checkpoint, or of another command.
    """
    if (path / RESOLVED).is_file():
        return read_run(path, encoder_only, decay)
    if decay is not None:
        raise WeightsError(f"decay is for the averages of a run directory, source={path} is none")
    if path.is_dir() and is_artefact(path):
        artefact = read_artefact(path, encoder_only=encoder_only)
        kept = ("model_id", "config_name", "step", "ema_decay", "source")
        return artefact.network, {key: artefact.metadata[key] for key in kept if key in artefact.metadata}
    if path.is_file():
        if encoder_only:
            raise WeightsError(f"encoder_only is for masked auto-encoders, source={path} is no folder of one")
        checkpoint = read_wflow(path)
        return checkpoint.network, {"model_id": f"W-Flow {path.name}", "step": checkpoint.step}
    if not (path / CONFIG).is_file():
        names = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise WeightsError(
            f"source={path} is no run directory, so it must hold {PARAMETERS} and {METADATA}, or {CONFIG}; "
            f"it holds {names}"
        )
    content = read_json(path / CONFIG)
    network: Pretrained
    if content.get("kind") in MaskedAutoencoder.kinds:
        network = MaskedAutoencoder.from_pretrained(path, setting="source")
        network = network.encoder_alone() if encoder_only else network
    else:
        if encoder_only:
            raise WeightsError(f"encoder_only is for masked auto-encoders, source={path} holds none")
        network = DiTGenerator.from_pretrained(path, setting="source")
    return network, dict(content.get("source") or {})


def read_run(run_dir: Path, encoder_only: bool, decay: float | None) -> tuple[Pretrained, dict[str, Any]]:
    """An average of a run's generator at its newest checkpoint, or of a finished run's masked auto-encoder."""
    network: Pretrained
    config: ImagenetConfig | MaeTrainingConfig
    if "mae" in OmegaConf.load(run_dir / RESOLVED):
        config = load_config(run_dir, MaeTrainingConfig)
        mae, step = load_mae(run_dir, decay, setting="source"), config.run.steps
        network = mae.encoder_alone() if encoder_only else mae
    else:
        config, generator, step = load_generator(run_dir, decay)
        if encoder_only:
            raise WeightsError(f"encoder_only is for masked auto-encoders, source={run_dir} holds a generator")
        if not isinstance(generator, DiTGenerator):
            kind = config.generator.kind
            raise WeightsError(f"source={run_dir} holds a generator of kind {kind}; only those of dit have a format")
        network = generator
    return network, {
        "model_id": config.run.name,
        "step": step,
        "ema_decay": config.ema.decays[0] if decay is None else decay,
    }


if __name__ == "__main__":
    main()
