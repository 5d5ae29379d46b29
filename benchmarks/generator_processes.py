"""What a generator takes in a process of its own: peak memory of training, and the time to the first sample.

`python -m benchmarks.generator_processes B/2 8 recomputed 0` prints the peak of 8 samples, seed 0, as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

from benchmarks.generator_networks import TINY, awake, batch_of, config_of
from benchmarks.machine import use_one_core
from benchmarks.measure import quartiles
from benchmarks.memory import RETURN_MEMORY, peak_resident
from benchmarks.report import print_table
from domains.imagenet.generator import DiTGenerator

BLOCKS = {"stored": False, "recomputed": True}  # checkpoint_blocks
START = """
import time; began = time.perf_counter()
import json, sys, torch
from domains.imagenet.generator import DiTGenerator
imported = time.perf_counter()
torch.set_num_threads(1)
net = DiTGenerator.from_pretrained(sys.argv[1])
loaded = time.perf_counter()
with torch.inference_mode():
    cfg = net.cfg
    net(torch.randn(1, cfg.channels, cfg.size, cfg.size), torch.zeros(1, dtype=torch.int64), torch.ones(1))
drawn = time.perf_counter()
print(json.dumps({"import": imported - began, "load": loaded - imported, "sample": drawn - loaded}))
"""


def in_fresh_process(arguments: list[str], **environment: str) -> dict:
    """The last line that a new interpreter prints, read as JSON.

    Raises:
        RuntimeError: it failed; the message is the end of what it said.
    """
    command = [sys.executable, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if result.returncode:
        raise RuntimeError((result.stderr.strip() or f"exit status {result.returncode}").splitlines()[-1])
    return json.loads(result.stdout.splitlines()[-1])


def measure_training(name: str, count: int, seed: int) -> dict[str, int]:
    """Peak bytes of a forward and backward pass beyond the parameters, its blocks stored or recomputed."""
    peaks = {}
    for blocks in BLOCKS:
        call = ["-m", "benchmarks.generator_processes", name, str(count), blocks, str(seed)]
        peaks[blocks] = in_fresh_process(call, **RETURN_MEMORY)["peak"]
    print(f"\n{name}, forward and backward pass of {count} samples: peak beyond the parameters, gradients included")
    print_table(["", "MiB"], [[f"blocks {blocks}", f"{peak / 2**20:.0f}"] for blocks, peak in peaks.items()])
    return peaks


def measure_start(name: str, times: int, seed: int) -> list[dict[str, float]]:
    """Seconds of a fresh process to its first sample, in parts; `whole` counts the interpreter's own start and end."""
    starts = []
    with tempfile.TemporaryDirectory() as folder:
        awake(config_of(name), "cpu", seed).save_pretrained(folder)
        for _ in range(times):
            began = time.perf_counter()
            parts = in_fresh_process(["-c", START, folder])
            starts.append(parts | {"whole": time.perf_counter() - began})
    print(f"\n{name}: first sample of a fresh process, {times} of them, weights in the page cache; seconds")
    rows = [[part, f"{quartiles([start[part] for start in starts]):.2f}"] for part in starts[0]]
    print_table(["", "median [quartiles]"], rows)
    return starts


def train(model: DiTGenerator, count: int) -> None:
    model(*batch_of(model.cfg, count, "cpu")).square().mean().backward()


def main() -> None:
    name, count, blocks, seed = sys.argv[1:]
    use_one_core()
    train(awake(replace(TINY, checkpoint_blocks=True), "cpu", int(seed)), 1)  # what torch imports on first use
    model = awake(replace(config_of(name), checkpoint_blocks=BLOCKS[blocks]), "cpu", int(seed))
    print(json.dumps({"peak": peak_resident(lambda: train(model, int(count)), times=1)}))


if __name__ == "__main__":
    main()
