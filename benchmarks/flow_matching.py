"""A drifting run against flow matching: the same generator, data and training time, sampled in one step.

    python -m benchmarks.flow_matching --run runs/imagenette64_pixel

Flow matching (Lipman et al. 2023, Liu et al. 2023) trains the run's own generator to give the velocity x - noise at
x_t = (1 - t) noise + t x; t enters where the guidance scale does, as alpha = 1 + 3 t. It trains for as many seconds as
the run did, on the same samples with the same optimiser, batch and averages, and is sampled by Euler steps from noise:
one, as the drifting generator, and many, for what the network can do when it may be called so often. Both are measured
by the report of `python -m domains.imagenet.evaluate`.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.options import options
from benchmarks.report import print_table, save
from domains.imagenet.config import ImagenetConfig
from domains.imagenet.data.image_data import to_float
from domains.imagenet.data.section import load_training_data
from domains.imagenet.data.shuffled_epochs import ShuffledEpochs
from domains.imagenet.evaluation import REAL, Evaluation
from domains.imagenet.generator import DiTGenerator
from domains.imagenet.pictures import save_comparison
from domains.imagenet.sampling import load_generator
from drifting.training.draws import stream
from drifting.training.ema import Ema
from drifting.training.errors import TrainingError
from drifting.training.metrics_log import read_metrics
from drifting.training.optimizer import build_optimizer, optimizer_step

MANY = 32  # Euler steps of the sampler that may take its time
SAMPLE_SEED = 0


class EulerSampler(nn.Module):
    """A velocity network as a generator: noise to sample in `steps` equal steps."""

    def __init__(self, velocity: DiTGenerator, steps: int) -> None:
        super().__init__()
        self.velocity, self.steps, self.cfg = velocity, steps, velocity.cfg

    def forward(self, noise: Tensor, labels: Tensor, alpha: Tensor) -> Tensor:
        """[K, C, H, W] -> the same; the guidance scale has no effect, as training had none."""
        x = noise
        for step in range(self.steps):
            x = x + self.velocity(x, labels, time_of(step / self.steps, labels)) / self.steps
        return x.clamp(-1, 1)


def time_of(t: float | Tensor, labels: Tensor) -> Tensor:
    """t in [0, 1] as the generator takes it, [K]."""
    return (1 + 3 * torch.as_tensor(t, dtype=torch.float32)).expand(len(labels))


def train_flow(config: ImagenetConfig, seconds: float) -> tuple[DiTGenerator, int]:
    """The averaged velocity network after `seconds` of training, and its updates."""
    data = load_training_data(config.data)
    torch.manual_seed(config.run.seed)
    # A velocity has no bounds, and style noise has no part in a flow.
    velocity = DiTGenerator(replace(config.generator.dit, output_range=None, style_tokens=0))
    ema = Ema(velocity, config.ema.decays, warmup=config.ema.warmup)
    optimizer = build_optimizer(velocity, config.optim)
    epochs = ShuffledEpochs(len(data), config.run.seed)
    batch = config.drift.classes_per_step * config.drift.num_generated
    # The schedule runs over steps: how many fit is taken from the first ones.
    began, step, total = time.perf_counter(), 0, None
    while (spent := time.perf_counter() - began) < seconds:
        if total is None and step == 20:
            total = max(int(seconds * step / spent), step + 1)
            print(f"flow matching: some {total} updates of {batch} in {seconds:.0f} s", flush=True)
        source = stream(config.run.seed, "flow", step)
        indices = epochs.take(batch)
        x, labels = to_float(data.read(indices, source)), data.labels[indices]
        noise = torch.randn(x.shape, generator=source)
        t = torch.rand(batch, generator=source)
        x_t = torch.lerp(noise, x, t[:, None, None, None])
        loss = F.mse_loss(velocity(x_t, labels, time_of(t, labels)), x - noise)
        planned = step + 1000 if total is None else max(total, step + 1)
        optimizer_step(loss, velocity, optimizer, config.optim, step=step, total_steps=planned)
        ema.update(velocity)
        step += 1
    return ema.model(), step  # type: ignore[return-value]


def rows_of(config: ImagenetConfig, generator: nn.Module, out: Path) -> tuple[dict[str, Any], Evaluation]:
    """The report's rows of one generator; sheets go to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    evaluation = Evaluation(config, {"": generator}, config.eval, out, out)  # type: ignore[arg-type]
    return evaluation.measured().rows, evaluation


def main() -> None:
    parser = options(__doc__, "flow_matching", quick="20 seconds of training")
    parser.add_argument("--run", type=Path, required=True, help="run directory of python -m domains.imagenet.train")
    parser.add_argument("--seconds", type=float, help="of training; default: the run's own")
    parser.add_argument("--samples", type=int, default=2000)
    arguments = parser.parse_args()
    try:
        config, drifting, step = load_generator(arguments.run)
    except TrainingError as error:
        sys.exit(f"error: {error}")
    if not isinstance(drifting, DiTGenerator) or config.tokenizer.kind != "none":
        parser.error("--run must be of a transformer on pixels")
    seconds = arguments.seconds or read_metrics(arguments.run)[-1]["seconds"]
    seconds = 20.0 if arguments.quick else seconds
    torch.set_num_threads(config.run.threads)
    section = replace(config.eval, alphas=[1.0], samples=arguments.samples, neighbours=0)
    section.judge_cache = section.judge_cache or str(arguments.run.absolute().parent / ".judges")
    config = replace(config, eval=section)

    velocity, updates = train_flow(config, seconds)
    folder = arguments.root / "flow_matching"
    generators = {
        "drifting, 1 step": drifting,
        "flow matching, 1 step": EulerSampler(velocity, 1),
        f"flow matching, {MANY} steps": EulerSampler(velocity, MANY),
    }
    table: dict[str, Any] = {}
    pictures = []
    for name, generator in generators.items():
        rows, evaluation = rows_of(config, generator, folder / name.replace(", ", "_").replace(" ", "_"))
        table[name] = rows["alpha 1"]
        pictures.append((name, evaluation.stream.shown(evaluation.grid)))
    table[REAL] = rows[REAL]
    names = list(table[REAL])
    print(f"\n{arguments.run}: step {step}; flow matching: {updates} updates in {seconds:.0f} s")
    print_table(["", *names], [[row, *(f"{figures[name]:.3f}" for name in names)] for row, figures in table.items()])
    figures = {"run": str(arguments.run), "seconds": seconds, "updates": updates, "steps": step, "rows": table}
    figures["environment"] = json.loads((arguments.run / "environment.json").read_text())[-1]
    save_comparison(save("flow_matching", figures, arguments.root), pictures)


if __name__ == "__main__":
    main()
