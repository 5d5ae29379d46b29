"""How many latents a second does one process read at random? A store of latents against one .pt file per image.

python -m benchmarks.latent_reads [--quick] [--samples N] [--batch N] [--cpu CORE]

The .pt files are laid out as the authors': a dict of two [32, 32, 4] float32 tensors, an image's latent and its mirror
image's; the store holds moments [2, 8, 32, 32] float16. All were just written: every read comes from the page cache,
so that this measures the software and not a disk. Times are the processor's.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.bar_chart import save_bars
from benchmarks.machine import facts, use_one_core
from benchmarks.measure import Quartiles, interleave, quartiles, ratios, rounds_within
from benchmarks.options import add_core, options
from benchmarks.report import print_table, save
from domains.imagenet.data.latent_store import ARRAY, POSTERIORS, LatentStore
from domains.imagenet.data.store_writer import StorePlan, StoreWriter

CHANNELS, SIDE = 4, 32
LEAST_RATIO, LEAST_RATE = 20, 50_000  # what the store promises
FILES, STORED = "one .pt per image", "store: stored moments"


def write_both(folder: Path, samples: int) -> tuple[Path, list[Path]]:
    """The same random latents as a store and as files."""
    rng = np.random.default_rng(0)
    shape = (2, 2 * CHANNELS, SIDE, SIDE)
    attributes = {"classes": ["a"], "scale": 0.18215, "shift": 0.0, "posterior": True, "scaled": False}
    plan = StorePlan(ARRAY, shape, "float16", np.zeros(samples, np.int64), attributes, "")
    writer, files = StoreWriter(folder / "latents.zarr", plan), []
    (folder / "files").mkdir()
    for number in writer.pending():
        rows = writer.chunk_rows(number)
        moments = rng.standard_normal((len(rows), *shape), dtype=np.float32)
        writer.write(number, moments.astype(np.float16))
        for row, pair in zip(rows, torch.from_numpy(moments[:, :, :CHANNELS]), strict=True):
            plain, flipped = (one.permute(1, 2, 0).contiguous() for one in pair)
            files.append(folder / "files" / f"{row}.pt")
            torch.save({"moments": plain, "moments_flip": flipped}, files[-1])
    writer.finish()
    return writer.path, files


def readers(stores: dict[str, LatentStore], files: list[Path], batch: int) -> dict[str, Callable[[], object]]:
    """One batch at random by each."""
    draws, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)

    def indices() -> torch.Tensor:
        return torch.randint(len(files), (batch,), generator=draws)

    def from_files() -> torch.Tensor:
        chosen, flips = indices().tolist(), torch.rand(batch, generator=noise) < 0.5
        loaded = [torch.load(files[index], weights_only=True) for index in chosen]
        keys = ["moments_flip" if flip else "moments" for flip in flips.tolist()]
        return torch.stack([pair[key].permute(2, 0, 1) for pair, key in zip(loaded, keys, strict=True)])

    raw = stores["mean"].store
    return {
        FILES: from_files,
        STORED: lambda: raw.read(indices().numpy(), np.zeros(batch, np.int64)),
        **{
            f"store: posterior={posterior}": lambda store=store: store.read(indices(), noise)
            for posterior, store in stores.items()
        },
    }


def main() -> None:
    parser = options(__doc__, "latent_reads", quick="300 samples and three rounds")
    add_core(parser)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=512, help="latents of a read")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of measurement")
    arguments = parser.parse_args()
    samples, budget, least = (300, 0.0, 3) if arguments.quick else (arguments.samples, arguments.budget, 9)
    core = use_one_core(arguments.cpu)

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        path, files = write_both(Path(folder), samples)
        written = time.perf_counter() - began
        stores = {posterior: LatentStore(path, posterior=posterior) for posterior in POSTERIORS}
        calls = readers(stores, files, arguments.batch)
        for store in stores.values():
            store.read(torch.arange(samples))  # the first read of a page costs its mapping
        # One thread and nothing to wait for: the processor's time is the work, and a neighbour on the core is not.
        rounds = rounds_within(budget, calls, least=least, clock=time.process_time)
        seconds = interleave(calls, rounds, clock=time.process_time)

    rates = {name: [arguments.batch / one for one in times] for name, times in seconds.items()}
    against = ratios(seconds, base=STORED)
    faster = {
        name: quartiles([slow / fast for slow, fast in zip(seconds[FILES], times, strict=True)])
        for name, times in seconds.items()
    }
    table = [
        [name, f"{median(rate):,.0f}", f"{max(rate):,.0f}", f"{faster[name]:.1f}", f"{len(rate)}"]
        for name, rate in rates.items()
    ]
    machine = facts()
    print(f"commit {machine['commit']}, torch {machine['torch']}, {machine['cpu']}, core {core}, one thread")
    print(
        f"random reads of {arguments.batch} of {samples} latents [{CHANNELS}, {SIDE}, {SIDE}], page cache warm "
        f"(written in {written:.0f} s just before); times faster than {FILES}: median [quartiles]\n"
    )
    print_table(["layout", "latents/s median", "best", "times faster", "rounds"], table)
    holds = faster[STORED].median >= LEAST_RATIO and median(rates[STORED]) >= LEAST_RATE
    print(f"\nbar of {LEAST_RATIO} times and {LEAST_RATE:,} stored moments a second: {'met' if holds else 'MISSED'}")
    figures = {
        "samples": samples,
        "batch": arguments.batch,
        "page_cache": "warm",
        "results": {name: {"latents_per_second": rate} for name, rate in rates.items()},
        "time_over_stored_moments": {name: spread(one) for name, one in against.items()},
        "times_faster_than_files": {name: spread(one) for name, one in faster.items()},
    }
    picture = save("latent_reads", figures, arguments.root)
    bars = {name: [quartiles([rate / 1000 for rate in each])] for name, each in rates.items()}
    groups = [f"batches of {arguments.batch} of {samples}"]
    save_bars(
        picture, groups, {"thousand latents per second": bars}, title="Random reads, one process, page cache warm"
    )


def spread(one: Quartiles) -> list[float]:
    return [one.low, one.median, one.high]


if __name__ == "__main__":
    main()
