"""The models of the coverage table, and the smallest inputs that still exercise them.

The timm list holds one model, the smaller ones where there is a choice, of every family with an own architecture file.
"""

from __future__ import annotations

from typing import Any

TIMM = [
    "beit_base_patch16_224", "botnet26t_256", "halonet26t", "lambda_resnet26t", "eca_nfnet_l0", "gcresnet33ts",
    "cait_xxs24_224", "coat_tiny", "convit_tiny", "convmixer_768_32", "convnext_tiny", "convnextv2_nano",
    "crossvit_tiny_240", "cspresnet50", "cspdarknet53", "davit_tiny", "deit3_small_patch16_224",
    "deit_tiny_distilled_patch16_224", "densenet121", "dla34", "dpn68", "edgenext_small", "efficientformer_l1",
    "efficientformerv2_s0", "efficientnet_b0", "efficientnetv2_rw_t", "efficientvit_b0", "efficientvit_m0",
    "eva02_tiny_patch14_224", "fasternet_t0", "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny", "ghostnet_100",
    "gmixer_24_224", "gmlp_s16_224", "hardcorenas_a", "hgnetv2_b0", "hiera_tiny_224", "hrnet_w18_small",
    "inception_next_tiny", "inception_resnet_v2", "inception_v4", "lcnet_100", "levit_128s", "mambaout_femto",
    "maxvit_tiny_rw_224", "coatnet_nano_rw_224", "poolformer_s12", "caformer_s18", "mixer_s32_224",
    "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv4_conv_small", "mobilevit_xxs", "mobilevitv2_050",
    "mvitv2_tiny", "nasnetalarge", "nest_tiny", "nextvit_small", "nf_resnet50", "dm_nfnet_f0", "pit_ti_224",
    "pnasnet5large", "pvt_v2_b0", "rdnet_tiny", "regnety_004", "repghostnet_050", "repvgg_a0", "repvit_m0_9",
    "res2net50_26w_4s", "resmlp_12_224", "resnest14d", "resnet10t", "resnetv2_50", "resnext50_32x4d", "rexnet_100",
    "selecsls42b", "senet154", "sequencer2d_s", "seresnet50", "skresnet18", "starnet_s1", "swiftformer_xs",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "tf_efficientnet_lite0",
    "tiny_vit_5m_224", "tnt_s_patch16_224", "tresnet_m", "twins_pcpvt_small", "twins_svt_small", "vgg11_bn",
    "visformer_tiny", "vit_tiny_patch16_224", "vit_small_r26_s32_224", "vit_relpos_small_patch16_224",
    "samvit_base_patch16_224", "vitamin_small_224", "volo_d1_224", "ese_vovnet19b_dw", "xception41",
    "xcit_nano_12_p16_224",
]  # fmt: skip

SIZES = {"inception_v3": 299, "vit_h_14": 224, "maxvit_t": 224}
"""torchvision models that need more than the default of 64 pixels, or a fixed size."""


def names() -> list[str]:
    """All models as <source>/<name>; torchvision segmentation is torchvision/segmentation.<name>."""
    import torchvision

    listed = [
        f"torchvision/{prefix}{name}"
        for module, prefix in ((torchvision.models, ""), (torchvision.models.segmentation, "segmentation."))
        for name in torchvision.models.list_models(module=module)
        if "quantized" not in name
    ]
    return sorted(listed) + [f"timm/{name}" for name in sorted(TIMM)]


def build(name: str) -> tuple[Any, Any]:
    """The model with random weights, and an example input."""
    import torch

    source, _, name = name.partition("/")
    if source == "torchvision":
        return _torchvision(name)
    import timm

    model = timm.create_model(name, pretrained=False)
    config = model.pretrained_cfg
    channels, size, _ = config["input_size"]
    if not config.get("fixed_input_size") and not _sized(model):
        size = max(96, *config.get("min_input_size", (0, 0, 0)))
    return model, torch.randn(1, channels, size, size)


def _sized(model: Any) -> bool:
    """Whether any part was built for one input size."""
    return any(
        getattr(module, name, None) is not None
        for module in model.modules()
        for name in ("img_size", "input_resolution", "feat_size", "rel_pos", "pos_embed")
    )


def _torchvision(name: str) -> tuple[Any, Any]:
    import torch
    import torchvision

    prefix, _, short = name.rpartition(".")
    arguments: dict[str, Any] = {"weights": None}
    if prefix:
        arguments["weights_backbone"] = None
    if short in ("googlenet", "inception_v3"):
        arguments["init_weights"] = False
    model = torchvision.models.get_model(short, **arguments)
    size = 224 if short.startswith(("vit_", "swin_")) else SIZES.get(short, 64)
    return model, torch.randn(1, 3, size, size)
