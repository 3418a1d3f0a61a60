"""What a checkpoint says of itself."""

import json

from safetensors.torch import save as safetensors_bytes

from hostile.samples import CHECKPOINT, NEWER_KEYS, Sample, entry, plan, state, torch_bytes

ARCHITECTURES = [
    'os:system?command="touch {trap}/os"',
    "trap_module:run",
    "torch:load?f={trap}/x.pt&weights_only=false",
    "torchvision:../../trap_module",
    "torchvision:__init__",
    "torchvision:get_model",
    "torchvision:alexnet?weights=DEFAULT",
    "torchvision:fcn_resnet50?weights_backbone=DEFAULT",
    "torchvision:alexnet?num_classes=1000000000",
    "torchvision:alexnet?num_classes=99999999",
    "torchvision:alexnet?num_classes=-1",
    "torchvision:alexnet?num_classes=[[[[1]]]]",
    "torchvision:vgg19",
    "torchvision:regnet_y_128gf",
    "torchvision:resnet50?width_per_group=30000",
    "timm:test_resnet?layers=[100000,1,1,1]",
    "timm:test_vit?depth=10000000",
    "timm:test_vit?depth=99999",
    "timm:vit_giant_patch14_224",
    "timm:eva02_enormous_patch14_clip_224",
    "timm:vit_tiny_patch16_224?img_size=100000",
    "timm:hf-hub:evil/model",
    "timm:test_resnet?pretrained=true",
    "timm:test_resnet?checkpoint_path=/etc/passwd",
    "timm:test_resnet?pretrained_cfg_overlay={{}}",
    "timm:test_resnet?features_only=true",
    "timm:test_resnet?act_layer=os.system",
    "timm:test_resnet?block=eval",
    "timm:test_resnet?global_pool=../../x",
    "hf:evil/model",
    "smp:Unet?encoder_weights=imagenet",
    "local-dir:/etc",
    "https://evil.example/model.pt",
    "../../../../etc/passwd",
    "torchvision:alexnet?" + "&".join(f"a{{i}}{i}=1" for i in range(60)),
    "torchvision:" + "a" * 10_000,
    "torchvision:alexnet?x=" + "[" * 900,
    "torchvision:\x1b[2J",
    "torchvision:alexnet\n",
    "torchvision:alexnet?num_classes=1" + "0" * 400,
    "torchvision:alexnet?dropout=1e400",
    "torchvision:alexnet?dropout=NaN",
]

IMAGES = [
    {"mean": ["os:system"], "std": [1], "size": None},
    {"mean": [0.5] * 10**6, "std": [0.5] * 10**6, "size": None},
    {"mean": [0.0], "std": [1e-300], "size": None},
    {"mean": None, "std": None, "size": [10**9, 10**9]},
    {"mean": None, "std": None, "size": [[8] * 1000] * 2},
    {"mean": None, "std": None, "size": None, "\x1b[2J": 1},
]

CONFIGS = [
    {},
    {"model_type": ["vit"]},
    {"model_type": "../../trap_module"},
    {"model_type": "vit", "auto_map": {"AutoModel": "trap_module.run"}},
    {"model_type": "vit", "quantization_config": {"quant_method": "awq"}},
    {"model_type": "upernet", "backbone": "evil/model", "use_pretrained_backbone": True},
    {"model_type": "vit", "hidden_act": "os.system('x')"},
    {"model_type": "vit", "hidden_size": 10**12},
    {"model_type": "vit", "num_hidden_layers": 10**7},
    {"model_type": "vit", "id2label": {str(i): "x" * 50 for i in range(10**5)}},
    {"model_type": "vit", "x": [[[[[[[[[[[[1]]]]]]]]]]]]},
    {"model_type": "vit", "config_file": "/etc/passwd"},
]

# Texts that may be read: nothing in them is used but as text or a number.
_READABLE = {
    "format version true",
    "keys twice",
    "a million spaces",
    "escapes",
    "half a character",
    "a long fraction",
    "ten thousand notes",
    "ten thousand scales",
    "ten thousand swaps",
}


def metadata(trap):
    """What a file says of itself: networks it may not ask for, plans for others, JSON that is none."""
    # What an architecture may ask for is known when it is built, which reading does not do.
    samples = []
    for index, text in enumerate(ARCHITECTURES):
        name = text.replace("{trap}", str(trap)).replace("{{}}", "{}")
        samples += _in_both(f"architecture {index} {text[:40]!r}", entry(architecture=name), refused=False)
    for name, text in _odd_json().items():
        samples += _in_both(name, text, refused=name not in _READABLE)
    for index, images in enumerate(IMAGES):
        samples += _in_both(f"images {index}", entry(images=images))
    for index, config in enumerate(CONFIGS):
        samples += _in_both(f"config {index}", entry(architecture="transformers:ViTModel", config=config))
    for version in range(1, json.loads(entry())["format_version"] + 1):
        for name, text in _damaged(version).items():
            samples += _in_both(f"format {version}, {name}", text)
        code = entry(version, architecture="os:system")  # for people to read: no file may have it called
        samples += _in_both(f"format {version}, architecture of code", code, refused=False)
    return samples


def _in_both(name, text, *, refused=True):
    """The entry in a file of torch.save, and in one of safetensors."""
    yield Sample(
        CHECKPOINT, f"metadata {name}", ".pt", torch_bytes({"state_dict": state(), "hotswap": text}), refused
    )
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    content = safetensors_bytes(dict(state()), {"hotswap": text})
    yield Sample(CHECKPOINT, f"metadata {name} safetensors", ".safetensors", content, refused)


def _odd_json():
    version = f'"format_version": {json.loads(entry())["format_version"]}'
    swap = plan()["swaps"][0]
    return {
        "deep JSON": "[" * 100_000,
        "deep JSON inside": entry().replace('"plan": {', '"plan": {"x": ' + "[" * 50_000 + "]" * 50_000 + ", "),
        "deep plan": entry(plan=json.loads('{"swaps":' * 400 + "[]" + "}" * 400)),
        "a huge whole number": entry().replace("0.3", "1" + "0" * 400),
        "a huge number": entry().replace("0.3", "1e400"),
        "a number of 5000 digits": entry().replace("0.3", "9" * 5000),
        "a long fraction": entry().replace("0.3", "0." + "3" * 10**6),
        "no number": entry().replace("0.3", "NaN"),
        "format version true": entry(version=1).replace('"format_version": 1', '"format_version": true'),
        "format version 10^14": entry().replace(version, '"format_version": 99999999999999'),
        "keys twice": entry()[:-1] + ', "architecture": "os:system"}',
        "half a character": entry(hotswap="\ud800"),
        "escapes": entry(hotswap="\x1b[2J\n"),
        "a million spaces": entry() + " " * 10**6,
        "null bytes": entry() + "\0",
        "ten thousand swaps": entry(plan=plan() | {"swaps": [swap] * 10_000}),
        "ten thousand notes": entry(plan=plan() | {"notes": ["note\x1b[2J"] * 10_000}),
        "ten thousand scales": entry(
            learned_scales={f"{i}.guide_log_scale": [1.0, "float32"] for i in range(10_000)}
        ),
    }


def _damaged(version):
    """Entries of one format, each with one thing that it may not have."""
    good = json.loads(entry(version))
    changed = {f"{key} a number": entry(version, **{key: 7}) for key in good if key != "format_version"}
    changed |= {f"without {key}": json.dumps({k: x for k, x in good.items() if k != key}) for key in good}
    changed |= {
        f"with {key}": entry(version, **{key: None}) for key in (*NEWER_KEYS.values(), "x") if key not in good
    }
    return changed | {
        "a scale that is none": entry(version, learned_scales={"target.guide_log_scale": ["1", "float32"]}),
        **{
            f"a tensor that is {what}": entry(version, learned_scales={"target.guide_projection": value})
            for what, value in {
                "too short": ["AAAA", "float32", [8, 4, 1, 1]],
                "no base64": ["\u2603" * 8, "float32", [1]],
                "not finite": ["AADAfw==", "float32", [1]],
                "of a huge shape": ["AAAAAA==", "float32", [2**62, 2**62]],
                "of no shape": ["AAAAAA==", "float32", []],
            }.items()
        },
        "a plan of nonsense": entry(version, plan=plan() | {"swaps": [{"target": 1}]}),
    }
