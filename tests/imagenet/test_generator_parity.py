"""Our generator returns the numbers of the authors' one.

Provenance: tests/golden/official_gen_*.npz are outputs of the JAX code lambertae/drifting at commit accd0cf,
unmodified, on a CPU in float32, with random parameters (int8 times a power of two; nothing at zero) and batches of
four. Arrays only. `latent` is the released recipe at width 64 and depth 2; `pixel` has patch 8 of 32 x 32 x 3; `plain`
has layer norm and GELU and no tokens, rotary positions or style noise; `lnqk` has layer norms, affine on queries and
keys.
"""

from pathlib import Path

import pytest
import torch
from golden_networks import Arrays, channels_first, generator_from, load_arrays, style_of

from domains.imagenet.flax_names import generator_names
from domains.imagenet.generator import DiTGenerator, sincos_positions

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = ["latent", "pixel", "plain", "lnqk"]


@pytest.fixture(scope="module", params=CASES)
def golden(request) -> tuple[Arrays, DiTGenerator]:
    arrays = load_arrays(GOLDEN / f"official_gen_{request.param}.npz")
    return arrays, generator_from(arrays)


def test_condition_vector(golden):
    arrays, net = golden
    labels, alpha = torch.from_numpy(arrays["labels"]).long(), torch.from_numpy(arrays["cfg"])
    cond = net.conditioning(labels, alpha, style_of(arrays, "noise_labels", net))
    torch.testing.assert_close(cond, torch.from_numpy(arrays["cond"]), rtol=2e-5, atol=1e-7)


def test_samples_and_parameter_gradients(golden):
    arrays, net = golden
    net.zero_grad()
    labels, alpha = torch.from_numpy(arrays["labels"]).long(), torch.from_numpy(arrays["cfg"])
    samples = net(channels_first(arrays["x"]), labels, alpha, style_of(arrays, "noise_labels", net))
    # atol: samples are of order one and sums of hundreds of terms; single values near zero have no relative accuracy
    torch.testing.assert_close(samples, channels_first(arrays["samples"]), rtol=2e-5, atol=2e-6)

    (samples * channels_first(arrays["cotangent"])).sum().backward()
    norms = {name: value for name, value in arrays.items() if name.startswith("gradnorm/")}
    assert len(norms) > 30
    gradients = {name: p.grad for name, p in net.named_parameters()}
    gradients = generator_names(net.cfg).to_theirs(gradients, "gradients")
    for name, norm in norms.items():
        ours = gradients[name.removeprefix("gradnorm/")].norm()
        torch.testing.assert_close(ours, torch.tensor(norm), rtol=1e-4, atol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", ["latent", "pixel"])
def test_initial_positions(case):
    theirs = load_arrays(GOLDEN / f"official_gen_{case}.npz")["params/LightningDiT_0/pos_embed"][0]
    ours = sincos_positions(side=int(len(theirs) ** 0.5), width=theirs.shape[1])
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-6)
