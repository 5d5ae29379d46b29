"""Pooled statistics against loops, in float64."""

import pytest
import torch

from drifting.features import pooled_statistics


def test_against_loops():
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    ours = pooled_statistics(x, (2, 4))
    expected = {"": torch.stack([x[:, :, i, j] for i in range(4) for j in range(8)], dim=1)}
    for p, suffix in ((None, ""), (2, "_2"), (4, "_4")):
        rows, columns = (4, 8) if p is None else (p, p)
        patches = [x[:, :, i : i + rows, j : j + columns] for i in range(0, 4, rows) for j in range(0, 8, columns)]
        means = [sum(patch.flatten(2).unbind(2)) / (rows * columns) for patch in patches]
        squares = [sum(patch.square().flatten(2).unbind(2)) / (rows * columns) for patch in patches]
        expected[f"mean{suffix}"] = torch.stack(means, dim=1)
        expected[f"std{suffix}"] = torch.stack(
            [(s - m**2 + 1e-6).sqrt() for s, m in zip(squares, means, strict=True)], dim=1
        )
    assert list(ours) == ["", "mean", "std", "mean_2", "std_2", "mean_4", "std_4"]
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value, msg=lambda m, k=key: f"{k!r}: {m}")


def test_a_4x4_map_repeats_the_global_statistics():
    statistics = pooled_statistics(torch.randn(2, 5, 4, 4))
    torch.testing.assert_close(statistics["mean_4"], statistics["mean"])
    torch.testing.assert_close(statistics["std_4"], statistics["std"])


def test_constant_map_has_a_small_std_and_a_finite_gradient():
    x = torch.full((1, 2, 4, 4), 3.0, requires_grad=True)
    std = pooled_statistics(x)["std"]
    torch.testing.assert_close(std, torch.full((1, 1, 2), 1e-3))
    std.sum().backward()
    assert x.grad.isfinite().all()


def test_patches_larger_than_the_map_are_left_out():
    assert list(pooled_statistics(torch.randn(1, 2, 2, 2))) == ["", "mean", "std", "mean_2", "std_2"]
    assert list(pooled_statistics(torch.randn(1, 2, 1, 1))) == ["", "mean", "std"]
    assert list(pooled_statistics(torch.randn(1, 2, 8, 8), patch_sizes=())) == ["", "mean", "std"]


def test_statistics_of_bf16_maps_are_float32():
    statistics = pooled_statistics(torch.randn(1, 2, 4, 4).bfloat16())
    assert {value.dtype for value in statistics.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("shape", "patch_sizes", "message"),
    [
        ((1, 2, 6, 6), (4,), "4 does not divide the 6 x 6"),
        ((1, 2, 4, 4), (1,), ">= 2"),
        ((2, 4, 4), (2,), r"\[K, C, H, W\]"),
    ],
)
def test_wrong_input_is_refused(shape, patch_sizes, message):
    with pytest.raises(ValueError, match=message):
        pooled_statistics(torch.zeros(shape), patch_sizes)
