"""Networks of the policies, one interface: net(x [K, H, A], cond [K / n, C], time [K] | None) -> [K, H, A].

Each row of `cond` serves n chunks in a row, n = 1, 2, ...: an observation's chunks share what follows from it. A
drifting policy gives no time; a diffusion policy gives the step of each chunk.
"""

from torch import nn

from domains.robotics.config import PolicyConfig
from domains.robotics.networks.mlp import ActionMlp
from domains.robotics.networks.transformer import ActionTransformer
from domains.robotics.networks.unet import ConditionalUnet

__all__ = ["ActionMlp", "ActionTransformer", "ConditionalUnet", "build_network"]


def build_network(config: PolicyConfig, *, action_dim: int, cond_dim: int) -> nn.Module:
    """The network of a policy for chunks [H, A] and conditions [C]."""
    timed = config.kind == "diffusion"
    if config.net == "unet":
        return ConditionalUnet(config.unet, action_dim=action_dim, cond_dim=cond_dim, timed=timed)
    shape = {"horizon": config.horizon, "action_dim": action_dim, "cond_dim": cond_dim, "timed": timed}
    if config.net == "mlp":
        return ActionMlp(config.mlp, **shape)
    return ActionTransformer(config.transformer, **shape)
