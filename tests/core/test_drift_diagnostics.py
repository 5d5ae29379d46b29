"""The figures that tell convergence: masses, share of the floor, spreads, drift RMS."""

import pytest
import torch

from drifting import DriftLoss, MeanShift, Sinkhorn, row_affinity


def test_masses_are_the_mean_summed_affinities():
    """With the softmax over references alone, a row's masses sum to one: two of three unmasked equal columns repel."""
    same = torch.zeros(1, 3, 2, dtype=torch.float64)
    loss = DriftLoss((0.1, 0.5), MeanShift(affinity=row_affinity, floor=0.0), normalize_features=False)
    figures = loss.terms(same, torch.full((1, 1, 2), 1e-5, dtype=torch.float64)).diagnostics
    torch.testing.assert_close(figures.negative_mass, torch.full((2,), 2 / 3, dtype=torch.float64), rtol=1e-3, atol=0)
    torch.testing.assert_close(figures.positive_mass, torch.full((2,), 1 / 3, dtype=torch.float64), rtol=1e-3, atol=0)


def test_floor_share_counts_the_pairs_on_the_floor():
    gen = torch.tensor([[[0.0], [0.1]]])
    pos = torch.tensor([[[0.05], [1e6]]])
    loss = DriftLoss((0.5,), normalize_features=False)
    # Of 2 x 4 pairs: two masked self pairs and the two to the far positive.
    assert loss.terms(gen, pos).diagnostics.floor_share.tolist() == [0.5]
    assert DriftLoss((0.5,), MeanShift(floor=0.0)).terms(gen, pos).diagnostics.floor_share.tolist() == [0.0]


def test_a_blind_kernel_shows_in_the_positive_mass():
    gen = torch.tensor([[[0.0], [0.1]]])
    loss = DriftLoss((0.05,), MeanShift(floor=0.0), normalize_features=False)
    assert loss.terms(gen, torch.tensor([[[1e4]]])).diagnostics.positive_mass.item() == 0


def test_sinkhorn_moves_whole_masses():
    rng = torch.Generator().manual_seed(0)
    gen, pos, ref = (torch.randn(2, n, 3, generator=rng) for n in (4, 5, 6))
    figures = DriftLoss(field=Sinkhorn()).terms(gen, pos, self_ref=ref).diagnostics
    for mass in (figures.positive_mass, figures.negative_mass):
        torch.testing.assert_close(mass, torch.ones(3))
    assert not figures.floor_share.any()


def test_spreads_are_rms_distances_from_the_problems_own_mean():
    rng = torch.Generator().manual_seed(0)
    gen = 0.1 * torch.randn(3, 500, 4, generator=rng) + torch.tensor([0.0, 50.0, -9.0])[:, None, None]
    pos = 2.0 * torch.randn(3, 500, 4, generator=rng) + 7
    figures = DriftLoss().terms(gen, pos).diagnostics
    assert figures.gen_spread.item() == pytest.approx(0.1, rel=0.05)
    assert figures.pos_spread.item() == pytest.approx(2.0, rel=0.05)
    with_ref = DriftLoss().terms(gen, pos, self_ref=pos).diagnostics
    assert with_ref.gen_spread.item() == pytest.approx(0.1, rel=0.05)


def test_drift_rms_tells_a_matched_batch_from_a_shifted_one_where_the_loss_cannot():
    """At the largest temperature: at small ones the two-sided kernel sees a single neighbour, matched or not."""
    rng = torch.Generator().manual_seed(0)
    gen, pos = (torch.randn(4, 64, 8, generator=rng) for _ in range(2))
    matched, shifted = DriftLoss().terms(gen, pos), DriftLoss().terms(gen, pos + 2)
    for terms in (matched, shifted):
        assert 3 <= terms.loss.mean() <= 9  # between T and T^2 in the mean over problems, whatever the match
    assert shifted.drift_rms[-1] > 3 * matched.drift_rms[-1]
    assert shifted.diagnostics.positive_mass[-1] < 0.5 * matched.diagnostics.positive_mass[-1]
