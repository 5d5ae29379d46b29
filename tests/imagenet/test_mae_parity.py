"""Our masked auto-encoder returns the numbers of the authors' one.

Provenance: tests/golden/official_mae_latent.npz comes from outputs of the JAX code lambertae/drifting at commit
accd0cf, unmodified, on a CPU in float32, with random parameters (int8 times a power of two) and a batch of two. Arrays
only. To be small it keeps one end of the network and the other: parameters of the stem and the first two stages with
their activations (whole, or per-sample L2 norms under `norm/`), and parameters of the last two decoder blocks.
`decoder_at_layer2` is what enters those blocks; it is the one array that our own implementation computed, when it
agreed with all of the authors' activations and losses; the loss it leads to is the authors'. test_full_goldens.py
checks the whole networks.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from flax_parameters import stored_parameters
from golden_networks import channels_first, load_arrays, mae_config_from

from domains.imagenet.encoders import MaeFeatures
from domains.imagenet.flax_names import mae_names
from domains.imagenet.mae import MaskedAutoencoder, hidden_error

GOLDEN = Path(__file__).parent.parent / "golden" / "official_mae_latent.npz"


@pytest.fixture(scope="module")
def arrays():
    return load_arrays(GOLDEN)


@pytest.fixture(scope="module")
def mae(arrays) -> MaskedAutoencoder:
    """Stages 3 and 4 and what belongs to them in the decoder keep their random start: nothing below looks at them."""
    net = MaskedAutoencoder(mae_config_from(arrays))
    missing, unexpected = net.load_state_dict(
        mae_names(len(net.cfg.blocks)).to_ours(stored_parameters(arrays), "golden"), strict=False
    )
    assert not unexpected
    elsewhere = ("encoder.stages.2", "encoder.stages.3", "encoder.stage_norms.2", "encoder.stage_norms.3")
    assert all(
        name.startswith((*elsewhere, "decoder.bridge", "decoder.ups.0", "decoder.ups.1", "head")) for name in missing
    )
    return net


def test_activations_and_their_statistics(arrays, mae):
    features = MaeFeatures(mae, maps=("conv1", "layer1", "layer2", "layer2_blk2"), sample_itself=False)
    ours = features(channels_first(arrays["x"]))
    whole = {name.removeprefix("act/"): value for name, value in arrays.items() if name.startswith("act/")}
    norms = {name.removeprefix("norm/"): value for name, value in arrays.items() if name.startswith("norm/")}
    assert set(ours) == set(whole) | set(norms)
    assert {"layer2", "layer2_mean_2", "layer2_std_4", "norm_x"} <= set(whole)
    for name, value in whole.items():
        torch.testing.assert_close(
            ours[name], torch.from_numpy(value), rtol=2e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name, value in norms.items():
        np.testing.assert_allclose(ours[name].double().flatten(1).norm(dim=1), value, rtol=1e-5, err_msg=name)


def test_last_decoder_blocks_and_reconstruction_loss(arrays, mae):
    grid, mask = channels_first(arrays["x"]), channels_first(arrays["mask"])
    maps = mae.encoder(grid.masked_fill(mask, 0.0))
    x = channels_first(arrays["decoder_at_layer2"])
    for up, skip in ((mae.decoder.ups[2], "layer1"), (mae.decoder.ups[3], "conv1")):
        x = up(x, maps[skip])
    loss = hidden_error(mae.decoder.head(x), grid, mask)
    torch.testing.assert_close(loss, torch.from_numpy(arrays["metric/recon_loss"]), rtol=2e-5, atol=0)
