"""The authors' objective as the formula says it, in JAX: the same operations as official_torch.py, for XLA to fuse.

Shapes: B problems, G generated, P positives, N extra negatives, M = G + N + P targets, D features.
"""

import jax
import jax.numpy as jnp

from benchmarks.official_torch import TEMPERATURES


def official_loss(gen, pos, neg=None, neg_weight=None, temperatures=TEMPERATURES):
    """Mean loss [] of gen [B, G, D], pos [B, P, D], neg [B, N, D] with weights [B, N]; float32."""
    num_gen, width = gen.shape[1:]
    frozen = jax.lax.stop_gradient(gen)
    targets = jnp.concatenate([frozen, pos] if neg is None else [frozen, neg, pos], axis=1)  # [B, M, D]
    blocks = [jnp.ones(gen.shape[:2]), jnp.ones(pos.shape[:2])]
    if neg is not None:
        blocks.insert(1, neg_weight)
    weight = jnp.concatenate(blocks, axis=1)[:, None, :]  # [B, 1, M]
    num_negative = targets.shape[1] - pos.shape[1]

    products = jnp.einsum("bgd,bmd->bgm", frozen, targets)
    squared = jnp.square(frozen).sum(-1)[:, :, None] + jnp.square(targets).sum(-1)[:, None, :] - 2 * products
    distance = jnp.sqrt(jnp.maximum(squared, 1e-8))  # [B, G, M]
    scale = (distance * weight).mean() / weight.mean()
    unit = jnp.maximum(scale / width**0.5, 1e-3)
    scaled_gen, scaled_targets = frozen / unit, targets / unit
    own = jnp.pad(100 * jnp.eye(num_gen), ((0, 0), (0, targets.shape[1] - num_gen)))
    distance = distance / jnp.maximum(scale, 1e-3) + own

    drift = jnp.zeros_like(gen)
    for temperature in temperatures:
        logits = -distance / temperature
        affinity = jnp.sqrt(jnp.maximum(jax.nn.softmax(logits, -1) * jax.nn.softmax(logits, -2), 1e-6)) * weight
        negative, positive = affinity[..., :num_negative], affinity[..., num_negative:]
        coefficients = jnp.concatenate(
            [-negative * positive.sum(-1, keepdims=True), positive * negative.sum(-1, keepdims=True)], axis=-1
        )
        force = jnp.einsum("bgm,bmd->bgd", coefficients, scaled_targets)
        force = force - coefficients.sum(-1, keepdims=True) * scaled_gen
        drift = drift + force / jnp.sqrt(jnp.maximum(jnp.square(force).mean(), 1e-8))
    goal = jax.lax.stop_gradient(scaled_gen + drift)
    return jnp.square(gen / unit - goal).mean()
