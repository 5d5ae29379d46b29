"""The names of the authors' flax parameters (lambertae/drifting) and ours."""

from domains.imagenet.generator import GeneratorConfig
from domains.imagenet.parameter_names import BATCHED, CONV, DENSE, ParameterNames, Rule

DIT = "LightningDiT_0"
BLOCK = f"{DIT}/blocks_{{}}"
STAGE, OUR_STAGE = "encoder/stages_{}/layers_{}", "encoder.stages.{}.{}"


def _linear(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{theirs}/Dense_0/kernel", f"{ours}.weight", DENSE),
        Rule(f"{theirs}/Dense_0/bias", f"{ours}.bias"),
    ]


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}/scale", f"{ours}.weight"), Rule(f"{theirs}/bias", f"{ours}.bias")]


def generator_names(cfg: GeneratorConfig) -> ParameterNames:
    """The table of a generator; a name depends on which norm and which MLP it has."""
    query_and_key = [(f"{BLOCK}/Attention_0/{n}_norm", f"blocks.{{}}.attention.{n}_norm") for n in "qk"]
    if cfg.rms_norm:
        norms = [Rule(f"{theirs}/weight", f"{ours}.weight") for theirs, ours in query_and_key]
    else:
        norms = [rule for theirs, ours in query_and_key for rule in _norm(theirs, ours)]
    style = [Rule("noise_embeds_{}/embedding", "conditioning.style.weight", parts=cfg.style_tokens)]
    style = style if cfg.style_tokens else []
    mlp = ("SwiGLUFFN_0", ("gate", "value", "out")) if cfg.swiglu else ("StandardMLP_0", ("hidden", "out"))
    linears = [(f"{BLOCK}/{mlp[0]}/TorchLinear_{i}", f"blocks.{{}}.mlp.{name}") for i, name in enumerate(mlp[1])]
    return ParameterNames(
        [
            Rule("Embed_0/embedding", "conditioning.classes.weight"),
            *_linear("TimestepEmbedder_0/TorchLinear_0", "conditioning.alpha_in"),
            *_linear("TimestepEmbedder_0/TorchLinear_1", "conditioning.alpha_out"),
            Rule("RMSNorm_0/weight", "conditioning.alpha_norm.weight"),
            *style,
            *_linear(f"{DIT}/TorchLinear_0", "patch_embed"),
            *_linear(f"{DIT}/TorchLinear_1", "context_linear"),
            Rule(f"{DIT}/cls_embed", "context_embed", BATCHED),
            Rule(f"{DIT}/pos_embed", "position", BATCHED),
            *_linear(f"{BLOCK}/TorchLinear_0", "blocks.{}.modulation.linear"),
            Rule(f"{BLOCK}/RMSNorm_0/weight", "blocks.{}.norm1.weight"),
            Rule(f"{BLOCK}/RMSNorm_1/weight", "blocks.{}.norm2.weight"),
            *_linear(f"{BLOCK}/Attention_0/TorchLinear_0", "blocks.{}.attention.qkv"),
            *_linear(f"{BLOCK}/Attention_0/TorchLinear_1", "blocks.{}.attention.out"),
            *norms,
            *(rule for theirs, ours in linears for rule in _linear(theirs, ours)),
            Rule(f"{DIT}/FinalLayer_0/RMSNorm_0/weight", "final.norm.weight"),
            *_linear(f"{DIT}/FinalLayer_0/TorchLinear_0", "final.modulation.linear"),
            *_linear(f"{DIT}/FinalLayer_0/TorchLinear_1", "final.linear"),
        ]
    )


def _up(stage: int, stages: int) -> list[Rule]:
    """Decoder block from map `stage` to the one above; theirs are named by both, ours numbered from the smallest."""
    theirs, ours = f"decoder/up{stage}{stage - 1}", f"decoder.ups.{stages - stage}"
    rules = _norm(f"{theirs}/concat_norm_fn", f"{ours}.join_norm")
    for their_part, our_part in (("proj", "project"), ("refine", "refine")):
        rules += [Rule(f"{theirs}/{their_part}/conv/kernel", f"{ours}.{our_part}.0.weight", CONV)]
        rules += _norm(f"{theirs}/{their_part}/gn", f"{ours}.{our_part}.1")
    return rules


def mae_names(stages: int) -> ParameterNames:
    """The table of a masked auto-encoder; the authors' have four stages."""
    return ParameterNames(
        [
            Rule("encoder/conv1/kernel", "encoder.stem.weight", CONV),
            *_norm("encoder/gn1", "encoder.stem_norm"),
            *(Rule(f"{STAGE}/conv{i}/kernel", f"{OUR_STAGE}.conv{i}.weight", CONV) for i in (1, 2)),
            *(rule for i in (1, 2) for rule in _norm(f"{STAGE}/gn{i}", f"{OUR_STAGE}.norm{i}")),
            Rule(f"{STAGE}/proj_conv/kernel", f"{OUR_STAGE}.shortcut.0.weight", CONV),
            *_norm(f"{STAGE}/proj_gn", f"{OUR_STAGE}.shortcut.1"),
            # theirs count stages from 1 in the norms and from 0 in the blocks
            *(rule for s in range(stages) for rule in _norm(f"encoder/layer{s + 1}_norm", f"encoder.stage_norms.{s}")),
            Rule("decoder/bridge/conv/kernel", "decoder.bridge.0.weight", CONV),
            *_norm("decoder/bridge/gn", "decoder.bridge.1"),
            *(rule for s in range(stages, 0, -1) for rule in _up(s, stages)),
            Rule("decoder/head/kernel", "decoder.head.weight", CONV),
            Rule("decoder/head/bias", "decoder.head.bias"),
            Rule("fc/kernel", "head.weight", DENSE),
            Rule("fc/bias", "head.bias"),
        ]
    )
