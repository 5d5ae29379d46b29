"""How the authors' flax parameters become ours: explicit rules, one line per parameter kind.

A flax Dense kernel is (in, out), a Conv kernel (kh, kw, in, out); torch wants (out, in) and (out, in, kh, kw).
Every rule is (flax pattern, torch name, layout); a name that matches no rule, or two, is an error.
"""

import re

import numpy as np
import torch
from torch import Tensor


def same(w: Tensor) -> Tensor:
    return w


def dense(w: Tensor) -> Tensor:
    """(in, out) -> (out, in)."""
    return w.T


def conv(w: Tensor) -> Tensor:
    """(kh, kw, in, out) -> (out, in, kh, kw)."""
    return w.permute(3, 2, 0, 1)


def squeeze(w: Tensor) -> Tensor:
    """(1, tokens, width) -> (tokens, width)."""
    return w.squeeze(0)


DIT = "LightningDiT_0"
BLOCK = rf"{DIT}/blocks_(\d+)"


def _linear(flax: str, ours: str) -> list[tuple]:
    return [(f"{flax}/Dense_0/kernel", f"{ours}.weight", dense), (f"{flax}/Dense_0/bias", f"{ours}.bias", same)]


GENERATOR_RULES = [
    ("Embed_0/embedding", "conditioning.classes.weight", same),
    *_linear("TimestepEmbedder_0/TorchLinear_0", "conditioning.alpha_in"),
    *_linear("TimestepEmbedder_0/TorchLinear_1", "conditioning.alpha_out"),
    ("RMSNorm_0/weight", "conditioning.alpha_norm.weight", same),
    # S tables of [codes, h] are the consecutive row blocks of one table; see stack_style_tables.
    ("noise_embeds/embedding", "conditioning.style.weight", same),
    *_linear(f"{DIT}/TorchLinear_0", "patch_embed"),
    *_linear(f"{DIT}/TorchLinear_1", "context_linear"),
    (f"{DIT}/cls_embed", "context_embed", squeeze),
    (f"{DIT}/pos_embed", "position", squeeze),
    *_linear(f"{BLOCK}/TorchLinear_0", r"blocks.\1.modulation.linear"),
    (f"{BLOCK}/RMSNorm_0/weight", r"blocks.\1.norm1.weight", same),
    (f"{BLOCK}/RMSNorm_1/weight", r"blocks.\1.norm2.weight", same),
    *_linear(f"{BLOCK}/Attention_0/TorchLinear_0", r"blocks.\1.attention.qkv"),
    *_linear(f"{BLOCK}/Attention_0/TorchLinear_1", r"blocks.\1.attention.out"),
    (f"{BLOCK}/Attention_0/([qk])_norm/(?:weight|scale)", r"blocks.\1.attention.\2_norm.weight", same),
    (f"{BLOCK}/Attention_0/([qk])_norm/bias", r"blocks.\1.attention.\2_norm.bias", same),
    *_linear(f"{BLOCK}/SwiGLUFFN_0/TorchLinear_0", r"blocks.\1.mlp.gate"),
    *_linear(f"{BLOCK}/SwiGLUFFN_0/TorchLinear_1", r"blocks.\1.mlp.value"),
    *_linear(f"{BLOCK}/SwiGLUFFN_0/TorchLinear_2", r"blocks.\1.mlp.out"),
    *_linear(f"{BLOCK}/StandardMLP_0/TorchLinear_0", r"blocks.\1.mlp.hidden"),
    *_linear(f"{BLOCK}/StandardMLP_0/TorchLinear_1", r"blocks.\1.mlp.out"),
    (f"{DIT}/FinalLayer_0/RMSNorm_0/weight", "final.norm.weight", same),
    *_linear(f"{DIT}/FinalLayer_0/TorchLinear_0", "final.modulation.linear"),
    *_linear(f"{DIT}/FinalLayer_0/TorchLinear_1", "final.linear"),
]


STAGE = r"encoder/stages_(\d+)/layers_(\d+)"
OURS = r"encoder.stages.\1.\2"


def _norm(flax: str, ours: str) -> list[tuple]:
    return [(f"{flax}/scale", f"{ours}.weight", same), (f"{flax}/bias", f"{ours}.bias", same)]


def _up(flax: str, index: int) -> list[tuple]:
    """Decoder stage `up<from><to>`: ours are numbered from the smallest map upwards."""
    ours = f"decoder.ups.{index}"
    rules = _norm(f"decoder/{flax}/concat_norm_fn", f"{ours}.join_norm")
    for theirs, name in (("proj", "project"), ("refine", "refine")):
        rules += [(f"decoder/{flax}/{theirs}/conv/kernel", f"{ours}.{name}.0.weight", conv)]
        rules += _norm(f"decoder/{flax}/{theirs}/gn", f"{ours}.{name}.1")
    return rules


MAE_RULES = [
    ("encoder/conv1/kernel", "encoder.stem.weight", conv),
    *_norm("encoder/gn1", "encoder.stem_norm"),
    (rf"{STAGE}/conv([12])/kernel", rf"{OURS}.conv\3.weight", conv),
    (rf"{STAGE}/gn([12])/scale", rf"{OURS}.norm\3.weight", same),
    (rf"{STAGE}/gn([12])/bias", rf"{OURS}.norm\3.bias", same),
    (rf"{STAGE}/proj_conv/kernel", rf"{OURS}.shortcut.0.weight", conv),
    *_norm(rf"{STAGE}/proj_gn", rf"{OURS}.shortcut.1"),
    # flax counts stages from 1 in the norms and from 0 in the blocks
    *(rule for s in range(4) for rule in _norm(f"encoder/layer{s + 1}_norm", f"encoder.stage_norms.{s}")),
    ("decoder/bridge/conv/kernel", "decoder.bridge.0.weight", conv),
    *_norm("decoder/bridge/gn", "decoder.bridge.1"),
    *(rule for index, flax in enumerate(("up43", "up32", "up21", "up10")) for rule in _up(flax, index)),
    ("decoder/head/kernel", "decoder.head.weight", conv),
    ("decoder/head/bias", "decoder.head.bias", same),
    ("fc/kernel", "head.weight", dense),
    ("fc/bias", "head.bias", same),
]


def to_torch(flax: dict[str, Tensor], rules: list[tuple]) -> dict[str, Tensor]:
    """State dict of ours from flax names without the leading `params/`; every flax name must match exactly one rule."""
    state = {}
    for name, value in flax.items():
        matches = [(m, ours, layout) for pattern, ours, layout in rules if (m := re.fullmatch(pattern, name))]
        if len(matches) != 1:
            raise ValueError(f"{name} matches {len(matches)} rules, expected exactly one")
        match, ours, layout = matches[0]
        state[match.expand(ours)] = layout(value).contiguous()
    return state


def stack_style_tables(flax: dict[str, Tensor]) -> dict[str, Tensor]:
    """noise_embeds_0 .. noise_embeds_{S-1}, each [codes, h], become one noise_embeds table [S * codes, h]."""
    tables = {int(m[1]): w for name, w in flax.items() if (m := re.fullmatch(r"noise_embeds_(\d+)/embedding", name))}
    rest = {name: w for name, w in flax.items() if not name.startswith("noise_embeds_")}
    return rest | ({"noise_embeds/embedding": torch.cat([tables[i] for i in range(len(tables))])} if tables else {})


def stored_parameters(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The parameters of a golden file: float32 arrays, or int8 * 2^k + offset with [k, offset] beside them."""
    params = {}
    for name, value in arrays.items():
        if name.startswith("q8/params/"):
            power, offset = arrays["q8meta" + name[2:]]
            params[name.removeprefix("q8/params/")] = torch.from_numpy(value.astype(np.float32) * 2.0**power + offset)
        elif name.startswith("params/"):
            params[name.removeprefix("params/")] = torch.from_numpy(value)
    return {name: value.float() for name, value in params.items()}
