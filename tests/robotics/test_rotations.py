import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from domains.robotics.rotations import (
    axis_angle_to_matrix,
    axis_angle_to_quaternion,
    axis_angle_to_six_d,
    matrix_to_axis_angle,
    matrix_to_quaternion,
    matrix_to_six_d,
    quaternion_to_axis_angle,
    quaternion_to_matrix,
    six_d_to_axis_angle,
    six_d_to_matrix,
)


@pytest.fixture
def vectors():
    """Axis-angle [K, 3]: none, tiny, ordinary, and near half a turn about every axis."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator, dtype=torch.float64), dim=-1)
    axes = torch.cat([axes, torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64)])
    angles = torch.tensor([0, 1e-12, 1e-6, 0.3, 1.5, math.pi - 1e-6], dtype=torch.float64)
    return (axes[:, None] * angles[:, None]).reshape(-1, 3)


def oracle(vectors):
    return Rotation.from_rotvec(vectors.numpy())


def test_matrices_are_those_of_scipy(vectors):
    np.testing.assert_allclose(axis_angle_to_matrix(vectors).numpy(), oracle(vectors).as_matrix(), atol=1e-14)


def test_quaternions_are_those_of_scipy_up_to_sign(vectors):
    ours, theirs = axis_angle_to_quaternion(vectors).numpy(), oracle(vectors).as_quat()
    np.testing.assert_allclose(np.abs((ours * theirs).sum(-1)), 1, atol=1e-14)
    assert (ours[:, 3] >= 0).all()
    np.testing.assert_allclose(
        quaternion_to_matrix(torch.tensor(theirs)).numpy(), oracle(vectors).as_matrix(), atol=1e-14
    )


def test_every_representation_leads_back(vectors):
    matrix = axis_angle_to_matrix(vectors)
    torch.testing.assert_close(matrix_to_axis_angle(matrix), vectors, atol=1e-8, rtol=0)
    torch.testing.assert_close(quaternion_to_axis_angle(axis_angle_to_quaternion(vectors)), vectors, atol=1e-8, rtol=0)
    torch.testing.assert_close(six_d_to_axis_angle(axis_angle_to_six_d(vectors)), vectors, atol=1e-8, rtol=0)
    torch.testing.assert_close(quaternion_to_matrix(matrix_to_quaternion(matrix)), matrix, atol=1e-14, rtol=0)


def test_angles_come_out_in_half_a_turn():
    turned = torch.tensor([[0.0, 0.0, 1.5 * math.pi]], dtype=torch.float64)
    expected = torch.tensor([[0.0, 0.0, -0.5 * math.pi]], dtype=torch.float64)
    torch.testing.assert_close(matrix_to_axis_angle(axis_angle_to_matrix(turned)), expected)
    torch.testing.assert_close(quaternion_to_axis_angle(torch.tensor([[0, 0, 0, -2.0]])), torch.zeros(1, 3))


def test_six_numbers_are_the_first_two_rows():
    # A quarter turn about z maps x to y: the matrix has rows (0, -1, 0), (1, 0, 0), (0, 0, 1).
    quarter = torch.tensor([0.0, 0.0, math.pi / 2], dtype=torch.float64)
    torch.testing.assert_close(axis_angle_to_six_d(quarter), torch.tensor([0, -1, 0, 1, 0, 0], dtype=torch.float64))
    matrix = axis_angle_to_matrix(quarter)
    assert matrix_to_six_d(matrix).tolist() == matrix[:2].flatten().tolist()


def test_a_network_output_becomes_a_rotation_that_keeps_the_first_row():
    noisy = torch.randn(50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix = six_d_to_matrix(noisy)
    identity = torch.eye(3, dtype=torch.float64).expand(50, 3, 3)
    torch.testing.assert_close(matrix @ matrix.mT, identity)
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(matrix[:, 0], torch.nn.functional.normalize(noisy[:, :3], dim=-1))


@pytest.mark.parametrize("degenerate", [torch.zeros(6), torch.tensor([1.0, 0, 0, -2.0, 0, 0])])
def test_six_numbers_without_a_plane_are_refused(degenerate):
    with pytest.raises(ValueError, match="six_d must hold two rows"):
        six_d_to_axis_angle(torch.stack([axis_angle_to_six_d(torch.ones(3)), degenerate]))


def test_gradients_are_right_and_finite_at_no_rotation():
    vectors = torch.tensor([[0.0, 0, 0], [0.2, -0.4, 0.1], [1.0, 2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(axis_angle_to_six_d, vectors[1:])
    axis_angle_to_six_d(vectors).sum().backward()
    assert vectors.grad.isfinite().all()
    six_d = axis_angle_to_six_d(vectors.detach()[1:]).requires_grad_()
    assert torch.autograd.gradcheck(six_d_to_matrix, six_d)


def test_float32_stays_float32_and_batches_keep_their_shape():
    vectors = torch.rand(2, 3, 4, 3)
    assert six_d_to_axis_angle(axis_angle_to_six_d(vectors)).shape == (2, 3, 4, 3)
    torch.testing.assert_close(six_d_to_axis_angle(axis_angle_to_six_d(vectors)), vectors, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (axis_angle_to_matrix, (4,)),
        (matrix_to_six_d, (3, 2)),
        (quaternion_to_axis_angle, (3,)),
        (six_d_to_matrix, (5,)),
    ],
)
def test_a_wrong_shape_is_named(function, shape):
    with pytest.raises(ValueError, match=r"must have shape \[\.\.\., "):
        function(torch.ones(shape))
