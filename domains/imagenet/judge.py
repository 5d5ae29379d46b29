"""Judges: classifiers whose features measure samples; they share nothing with an encoder that trains generators.

A judge sees training images only, moved, scaled and made noisy, so that it does not memorise them. Figures in its
feature space are called FD(judge) and so on: they compare within one data set, and never with an FID.
`judge_networks.py` holds the networks and how each is trained.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from domains.imagenet.data.image_data import ImageData, to_float
from domains.imagenet.judge_networks import JudgeNetwork, JudgeRecipe, judge_recipe
from domains.imagenet.metrics.feature_network import Features
from drifting.training.atomic_file import replacing
from drifting.training.errors import ConfigError

STEPS: int | None = None  # of training every judge; None: as its recipe says


class Judge(nn.Module):
    """A trained classifier of images [C, H, W] as a `FeatureNetwork`, frozen."""

    name = "judge"

    def __init__(self, network: JudgeNetwork, sample_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.sample_shape = tuple(sample_shape)
        self.network = network.eval().requires_grad_(False)
        self.width = network.head.in_features

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """Pooled features [k, d] and class logits [k, c] of images [k, C, H, W], uint8 or float in [-1, 1].

        Raises:
            ValueError: of another shape than the images that the judge has learnt.
        """
        if tuple(images.shape[1:]) != self.sample_shape:
            expected = ", ".join(map(str, self.sample_shape))
            raise ValueError(f"images must be [k, {expected}] for this judge, got {tuple(images.shape)}")
        device = self.network.head.weight.device
        parts = [self.network.body(to_float(part.to(device))) for part in images.split(1000)]  # parts that fit a cache
        pooled = torch.cat(parts)
        return Features(pooled.cpu(), logits=self.network.head(pooled).cpu())


def train_judge(data: ImageData, seed: int, device: torch.device | None = None) -> Judge:
    """Train one judge; depends on `data` and `seed` alone.

    On one core: 7 s for the digits, under a minute for 28 x 28 grey images, under four minutes for 64 x 64 in colour.
    """
    recipe = _recipe(data)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = recipe.build(data.sample_shape[0], len(data.classes)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = recipe.schedule(optimizer)
    for _ in tqdm(range(recipe.steps), desc=f"judge {seed}", leave=False, disable=None):
        batch = torch.randint(len(data), (recipe.batch,), generator=generator)
        images = recipe.augment(to_float(data.read(batch)), generator)
        loss = F.cross_entropy(network(images.to(device)), data.labels[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Judge(network, data.sample_shape)


def load_judge(data: ImageData, seed: int, cache: Path, device: torch.device | None = None) -> Judge:
    """The judge of these data and this seed from the folder `cache`; trained and put there if it is not in it.

    Raises:
        ConfigError: a damaged file in the cache.
    """
    file = judge_file(data, seed, cache)
    if not file.exists():
        judge = train_judge(data, seed, device)
        cache.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in judge.network.state_dict().items()}
        with replacing(file, several=True) as stream:  # ranks, or runs, may all be here
            stream.write(save(state, {"data": data.fingerprint, "seed": str(seed)}))
        return judge
    with torch.random.fork_rng(devices=[]):  # a run is the same with and without a judge
        network = _recipe(data).build(data.sample_shape[0], len(data.classes))
    try:
        network.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ConfigError(f"{file} is damaged: {error}. Delete it, and the judge is trained again.") from error
    return Judge(network.to(device), data.sample_shape)


def judge_file(data: ImageData, seed: int, cache: Path) -> Path:
    """Where the judge lies: named after all that it depends on."""
    depends = f"{data.fingerprint} {seed} {data.sample_shape} {len(data.classes)} {asdict(_recipe(data))}"
    return cache / f"judge_{hashlib.sha256(depends.encode()).hexdigest()[:16]}.safetensors"


def _recipe(data: ImageData) -> JudgeRecipe:
    return judge_recipe(data.sample_shape, steps=STEPS)
