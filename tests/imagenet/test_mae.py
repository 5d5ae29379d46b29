"""Properties of the masked auto-encoder that hold without any reference."""

import pytest
import torch

from domains.imagenet.mae import MaeConfig, MaskedAutoencoder, hidden_error, random_patch_mask, to_grid
from domains.imagenet.mae_encoder import ResNetEncoder, group_norm

DIGITS = MaeConfig(channels=1, base_channels=8, blocks=(1, 2, 1), max_groups=4, num_classes=10)


def digit_like(count=4, seed=0):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_trunk_on_8x8_images():
    maps = MaskedAutoencoder(DIGITS).encoder(digit_like())
    shapes = {name: tuple(value.shape[1:]) for name, value in maps.items()}
    assert shapes == {
        "conv1": (8, 8, 8),
        "layer1_blk1": (8, 8, 8),
        "layer1": (8, 8, 8),
        "layer2_blk1": (16, 4, 4),
        "layer2_blk2": (16, 4, 4),
        "layer2": (16, 4, 4),
        "layer3_blk1": (32, 2, 2),
        "layer3": (32, 2, 2),
    }


def test_paper_encoder_has_the_resnet34_blocks():
    """[3, 4, 6, 3] basic blocks, two 3 x 3 convolutions each, and a projection in stages 2 to 4."""
    with torch.device("meta"):
        encoder = ResNetEncoder(4, 256, (3, 4, 6, 3))
    convolutions = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 1 + 2 * 16 + 3
    assert {m.eps for m in encoder.modules() if isinstance(m, torch.nn.GroupNorm)} == {1e-6}
    assert encoder.map_widths["layer4"] == 2048


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (48, 24), (8, 8), (33, 11), (37, 1)])
def test_groups_are_the_largest_divisor_up_to_the_bound(channels, groups):
    assert group_norm(channels, 32).num_groups == groups


def test_grid_puts_each_square_into_channels():
    images = torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8)
    s = 4
    grid = to_grid(images, MaeConfig(channels=3, space_to_depth=s, blocks=(1, 1)))
    assert grid.shape == (2, 48, 2, 2)
    for p, q, c, y, x in [(0, 0, 0, 0, 0), (1, 2, 0, 1, 0), (3, 0, 2, 0, 1), (2, 3, 1, 1, 1)]:
        assert torch.equal(grid[:, (p * s + q) * 3 + c, y, x], images[:, c, y * s + p, x * s + q])


def test_mask_hides_whole_patches_independently():
    grid = torch.empty(400, 3, 8, 8)
    mask = random_patch_mask(grid, patch=2, probability=0.3, generator=torch.Generator().manual_seed(0))
    assert mask.shape == (400, 1, 8, 8)
    assert mask.dtype == torch.bool
    patches = mask.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)  # [400, 1, 4, 4, 4]
    assert torch.equal(patches.all(-1), patches.any(-1))
    hidden = patches.all(-1).float().flatten(1)  # [400, 16]
    assert hidden.mean().item() == pytest.approx(0.3, abs=0.02)
    correlation = torch.corrcoef(hidden.T) - torch.eye(16)
    assert correlation.abs().max() < 0.25


def test_hidden_error_by_hand():
    target = torch.zeros(2, 3, 2, 2)
    reconstruction = torch.ones(2, 3, 2, 2)
    reconstruction[0, :, 0, 0] = 2.0
    mask = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0, :] = True
    # three channels of 2^2 at one hidden position, of 1 at the other; the second sample hides nothing
    torch.testing.assert_close(hidden_error(reconstruction, target, mask), torch.tensor([(12.0 + 3.0) / 2, 0.0]))


def test_hidden_values_do_not_reach_the_reconstruction():
    mae = MaskedAutoencoder(DIGITS)
    images = digit_like()
    mask = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    mask[:, :, 2:4, 4:6] = True
    outputs = []
    mae.decoder.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    mae(images, mask=mask)
    mae(torch.where(mask, images + 5.0, images), mask=mask)
    assert torch.equal(*outputs)
    mae(torch.where(mask, images, images + 5.0), mask=mask)
    assert not torch.equal(outputs[0], outputs[2])


def test_gradient_reaches_every_parameter():
    mae = MaskedAutoencoder(DIGITS)
    result = mae(
        digit_like(), torch.tensor([0, 1, 2, 3]), classification_weight=0.1, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(result.loss.detach(), 0.9 * result.reconstruction + 0.1 * result.classification)
    result.loss.sum().backward()
    assert [name for name, p in mae.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_labels_without_weight_are_only_measured():
    mae = MaskedAutoencoder(DIGITS)
    result = mae(digit_like(), torch.tensor([0, 1, 2, 3]))
    assert result.classification.shape == result.correct.shape == (4,)
    assert torch.equal(result.loss.detach(), result.reconstruction)
    assert mae(digit_like()).classification is None


def test_a_few_steps_reduce_the_loss():
    mae = MaskedAutoencoder(DIGITS)
    mae.reset_parameters(torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    images = torch.linspace(-1, 1, 8)[None, None, :, None] * torch.randn(16, 1, 1, 1, generator=rng).expand(16, 1, 1, 8)
    optimizer = torch.optim.Adam(mae.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = mae(images, generator=rng).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_mask_draw_is_reproducible():
    mae = MaskedAutoencoder(DIGITS)
    first, again, other = (mae(digit_like(), generator=torch.Generator().manual_seed(s)).loss for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("images", "kwargs", "message"),
    [
        (torch.zeros(4, 2, 8, 8), {}, r"\[K, 1, H, W\]"),
        (torch.zeros(4, 1, 8, 6), {}, "divisible by .* = 4"),
        (digit_like(), {"classification_weight": 0.1}, "needs labels"),
        (digit_like(), {"classification_weight": 1.5}, r"\[0, 1\]"),
        (digit_like(), {"mask": torch.zeros(4, 1, 8, 8)}, "bool"),
        (digit_like(), {"mask": torch.zeros(4, 1, 4, 4, dtype=torch.bool)}, r"\(4, 1, 8, 8\)"),
    ],
)
def test_wrong_input_is_refused(images, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MaskedAutoencoder(DIGITS)(images, **kwargs)


def test_classification_needs_a_head():
    mae = MaskedAutoencoder(MaeConfig(channels=1, base_channels=8, blocks=(1,)))
    with pytest.raises(ValueError, match="num_classes"):
        mae(digit_like(), torch.zeros(4, dtype=torch.int64), classification_weight=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": ()}, "blocks"),
        ({"blocks": (1, 0)}, "blocks"),
        ({"mask_probability": 1.0}, "probability"),
        ({"channels": 0}, "channels"),
    ],
)
def test_wrong_config_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MaeConfig(**change)
