"""Rotations as axis-angle, quaternion, matrix and six numbers; batched, differentiable, in the dtype given.

A quaternion is (x, y, z, w), as in robosuite; q and -q are the same rotation, and w >= 0 is what comes out. An
axis-angle vector is the axis times the angle in radians; angles in [0, pi] come out. The six numbers are the first two
*rows* of the matrix, row after row: the convention of pytorch3d, and so of Diffusion Policy's and robomimic's
`rotation_6d`. A policy learns these because they are continuous in the rotation (Zhou et al., arXiv 1812.07035).
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Shorter than this, two 6-D rows span no plane. Networks and data are of order one.
DEGENERATE = 1e-6


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Rodrigues' formula R = I + (sin t / t) K + ((1 - cos t) / t^2) K^2, exact at t = 0; [..., 3] -> [..., 3, 3]."""
    _expect(axis_angle, "axis_angle", (3,))
    angle = axis_angle.norm(dim=-1)[..., None, None]
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    # torch.sinc(u) = sin(pi u) / (pi u); (1 - cos t) / t^2 = sinc(t / 2 pi)^2 / 2 does not cancel for small t.
    first = torch.sinc(angle / torch.pi)
    second = torch.sinc(angle / (2 * torch.pi)) ** 2 / 2
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return identity + first * cross + second * (cross @ cross)


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """Unit quaternion (x, y, z, w >= 0) of a rotation matrix; [..., 3, 3] -> [..., 4].

    Every column of q q^T is the quaternion times one of its numbers; the largest number's column loses no digits.
    """
    _expect(matrix, "matrix", (3, 3))
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in matrix.unbind(-2))
    columns = torch.stack(
        [
            torch.stack([1 + xx - yy - zz, xy + yx, xz + zx, zy - yz], dim=-1),
            torch.stack([xy + yx, 1 - xx + yy - zz, yz + zy, xz - zx], dim=-1),
            torch.stack([xz + zx, yz + zy, 1 - xx - yy + zz, yx - xy], dim=-1),
            torch.stack([zy - yz, xz - zx, yx - xy, 1 + xx + yy + zz], dim=-1),
        ],
        dim=-2,
    )
    largest = columns.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    column = columns.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4)).squeeze(-2)
    return _upper_half(normalize(column, dim=-1))


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """Rotation matrix of a quaternion (x, y, z, w) of any length; [..., 4] -> [..., 3, 3]."""
    _expect(quaternion, "quaternion", (4,))
    x, y, z, w = normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], dim=-1),
        torch.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], dim=-1),
        torch.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def quaternion_to_axis_angle(quaternion: Tensor) -> Tensor:
    """Axis times angle in [0, pi] of a quaternion (x, y, z, w); [..., 4] -> [..., 3]."""
    _expect(quaternion, "quaternion", (4,))
    vector, real = _upper_half(normalize(quaternion, dim=-1)).split((3, 1), dim=-1)
    half_sine = vector.norm(dim=-1, keepdim=True)
    small = half_sine < torch.finfo(quaternion.dtype).eps
    angle = 2 * torch.atan2(half_sine, real)
    return vector * torch.where(small, 2, angle / half_sine.masked_fill(small, 1))


def axis_angle_to_quaternion(axis_angle: Tensor) -> Tensor:
    """Unit quaternion (x, y, z, w >= 0) of axis times angle; [..., 3] -> [..., 4]."""
    return matrix_to_quaternion(axis_angle_to_matrix(axis_angle))


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Axis times angle in [0, pi] of a rotation matrix; [..., 3, 3] -> [..., 3]."""
    return quaternion_to_axis_angle(matrix_to_quaternion(matrix))


def matrix_to_six_d(matrix: Tensor) -> Tensor:
    """The first two rows of a rotation matrix; [..., 3, 3] -> [..., 6]."""
    _expect(matrix, "matrix", (3, 3))
    return matrix[..., :2, :].flatten(-2)


def six_d_to_matrix(six_d: Tensor) -> Tensor:
    """The rotation whose first row is along the first three numbers and whose second row is nearest the last three.

    [..., 6] -> [..., 3, 3], by Gram-Schmidt. ValueError if the two rows are zero or parallel: that is no rotation.
    """
    _expect(six_d, "six_d", (6,))
    first, second = six_d[..., :3], six_d[..., 3:]
    first_row = normalize(first, dim=-1)
    beside = second - (first_row * second).sum(-1, keepdim=True) * first_row
    length = torch.minimum(first.norm(dim=-1), beside.norm(dim=-1))
    if bool((length < DEGENERATE).any()):
        worst = six_d.reshape(-1, 6)[length.reshape(-1).argmin()].tolist()
        raise ValueError(f"six_d must hold two rows that are neither zero nor parallel, got {worst}")
    second_row = normalize(beside, dim=-1)
    return torch.stack([first_row, second_row, torch.linalg.cross(first_row, second_row)], dim=-2)


def axis_angle_to_six_d(axis_angle: Tensor) -> Tensor:
    """The six numbers of axis times angle; [..., 3] -> [..., 6]."""
    return matrix_to_six_d(axis_angle_to_matrix(axis_angle))


def six_d_to_axis_angle(six_d: Tensor) -> Tensor:
    """Axis times angle in [0, pi] of the six numbers; [..., 6] -> [..., 3]. ValueError as `six_d_to_matrix`."""
    return matrix_to_axis_angle(six_d_to_matrix(six_d))


def _upper_half(quaternion: Tensor) -> Tensor:
    """The one of q and -q whose w is not negative."""
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def _expect(value: Tensor, name: str, shape: tuple[int, ...]) -> None:
    if tuple(value.shape[-len(shape) :]) != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} must have shape [..., {wanted}], got {list(value.shape)}")
