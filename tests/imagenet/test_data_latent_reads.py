"""The benchmark of latent reads compares the same latents."""

import numpy as np
import torch

from benchmarks.latent_reads import CHANNELS, FILES, SIDE, readers, write_both
from domains.imagenet.data.latent_store import POSTERIORS, LatentStore


def test_both_layouts_hold_the_same_latents_and_every_reader_gives_a_batch(tmp_path):
    path, files = write_both(tmp_path, 12)
    stored = torch.from_numpy(LatentStore(path).store.read(np.arange(12))).float()
    for index, file in enumerate(files):
        pair = torch.load(file, weights_only=True)
        for orientation, key in enumerate(("moments", "moments_flip")):
            assert pair[key].shape == (SIDE, SIDE, CHANNELS)
            held = stored[index, orientation, :CHANNELS].permute(1, 2, 0)
            torch.testing.assert_close(pair[key], held, rtol=1e-3, atol=1e-3)
    calls = readers({posterior: LatentStore(path, posterior=posterior) for posterior in POSTERIORS}, files, batch=5)
    assert calls[FILES]().shape == (5, CHANNELS, SIDE, SIDE)
    for name, call in list(calls.items())[1:]:
        assert len(call()) == 5, name
