import sys
import textwrap

import pytest
import torch
from torch import nn

from hotswap.errors import HotswapError
from hotswap.zoo import names, providers
from hotswap.zoo.trust import SizeLimit


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of the user's own, importable by name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, code):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return tmp_path

    return write


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "provider", "name", "options"),
    [
        ("torchvision:vgg16", "torchvision", "vgg16", {}),
        ("torchvision:fcn_resnet50?num_classes=21", "torchvision", "fcn_resnet50", {"num_classes": 21}),
        ("timm:resnet50d.ra2_in1k?drop_rate=0.5", "timm", "resnet50d.ra2_in1k", {"drop_rate": 0.5}),
        (
            "timm:x?a=true&b=null&c=text&d=[1,[2,3]]",
            "timm",
            "x",
            {"a": True, "b": None, "c": "text", "d": [1, [2, 3]]},
        ),
        ('my.nets:make?a="7"&b=7x&c=', "my.nets", "make", {"a": "7", "b": "7x", "c": ""}),
        ("nets:Outer.Inner", "nets", "Outer.Inner", {}),
        ("nets:make?a=NaN&b=x=y", "nets", "make", {"a": "NaN", "b": "x=y"}),
        (f"nets:make?a={'9' * 50}", "nets", "make", {"a": int("9" * 50)}),
        (f"nets:make?a={'[' * 900}", "nets", "make", {"a": "[" * 900}),
    ],
)
def test_parse_and_put_together_again(spec, provider, name, options):
    parsed = names.parse(spec)
    assert (parsed.provider, parsed.name, parsed.options) == (provider, name, options)
    assert names.parse(str(parsed)) == parsed


@pytest.mark.parametrize("text", ["7", "true", "null", "[1]", "a&b", '"', "NaN", "", " ", "a=b", "[", "é"])
def test_text_options_survive(text):
    parsed = names.Spec("nets", "make", {"a": text})
    assert names.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("vgg16", "must be torchvision:NAME, timm:NAME, smp:NAME, hf:OWNER/NAME, a folder of a saved"),
        ("", "must be torchvision:NAME"),
        (":vgg16", "must be torchvision:NAME"),
        ("torchvision:", "must be torchvision:NAME"),
        ("../nets:make", "must be torchvision:NAME"),
        ("nets:make()", "no name of a function"),
        ("nets:a..b", "no name of a function"),
        ("nets:make?", "an option must be key=value, got ''"),
        ("nets:make?a", "an option must be key=value, got 'a'"),
        ("nets:make?a=1&", "an option must be key=value"),
        ("nets:make?a-b=1", "an option must be key=value"),
        ("nets:make?a=1&a=2", "option 'a' is given twice"),
        ("nets:make?a=True", "write a=true"),
        ("nets:make?a=None", "write a=null"),
        ('nets:make?a={"b":1}', "option a must be a number, text"),
        ("nets:make?a=" + "x" * 1000, "at most 1000 characters"),
        (7, "named by a string, got 7"),
    ],
)
def test_refuses_a_malformed_name(spec, reason):
    with pytest.raises(HotswapError) as caught:
        names.parse(spec)
    assert reason in str(caught.value)


# --- torchvision and timm ---------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("downloads")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.parametrize(
    ("spec", "trusted", "shape"),
    [
        ("torchvision:mobilenet_v3_small?num_classes=7", False, (2, 7)),
        ("torchvision:lraspp_mobilenet_v3_large?num_classes=5", True, {"out": (2, 5, 32, 32)}),
        ("timm:test_resnet?num_classes=3&in_chans=3", True, (2, 3)),
        ("timm:test_resnet.r160_in1k", False, (2, 1000)),
        ("smp:Unet?encoder_name=resnet18&classes=5", True, (2, 5, 32, 32)),
        ("smp:fpn?encoder_name=mobilenet_v2", False, (2, 1, 32, 32)),
    ],
)
@torch.no_grad()
def test_builds_without_a_download(offline, spec, trusted, shape):
    model = providers.build(spec, trusted=trusted)
    assert model.training
    out = model.eval()(torch.randn(2, 3, 32, 32))
    assert shape == ({k: tuple(x.shape) for k, x in out.items()} if isinstance(out, dict) else tuple(out.shape))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("torchvision:vgg61", "torchvision has no network 'vgg61'; closest: vgg"),
        ("timm:resnet5", "timm has no network 'resnet5'; closest: resnet"),
        ("timm:test_resnet.nope", "could not be built"),
        ("smp:Unett", "segmentation_models_pytorch has no network 'Unett'; closest: Unet"),
        ("smp:Unet?encoder_name=resnet5", "could not be built"),
        ("hf:nothing", "must be hf-hub:OWNER/NAME"),
        ("hf:owner/name/more", "must be hf-hub:OWNER/NAME"),
        ("transformers:SegformerModel", "must be a mapping with a model_type"),
        ("torchvision:alexnet?num_clases=3", "num_clases"),
        ("timm:test_resnet?num_clases=3", "num_clases"),
        ("torchvision:alexnet?weights=NOPE", "NOPE"),
        ("torchvision:alexnet?num_classes=three", "could not be built (TypeError"),
        ("torchvision:alexnet?num_classes=100000000000000", "could not be built (RuntimeError"),
    ],
)
def test_refuses_what_there_is_not_in_one_line(offline, spec, reason):
    with pytest.raises(HotswapError) as caught:
        providers.build(spec, trusted=True)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "spec", "extra"),
    [
        ("torchvision.models", "torchvision:alexnet", "zoo"),
        ("timm", "timm:resnet18", "zoo"),
        ("segmentation_models_pytorch", "smp:Unet", "smp"),
        ("transformers", "transformers:SegformerModel", "transformers"),
        ("huggingface_hub", "hf:owner/name", "hub"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, package, spec, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(HotswapError, match=rf"pip install 'hotswap\[{extra}\]'"):
        providers.build(spec, trusted=True)


@pytest.mark.parametrize("spec", ["torchvision:mobilenet_v3_small", "timm:test_vit", "timm:test_convnext"])
def test_uninitialised_networks_differ_in_values_only(spec):
    fast, full = (providers.build(spec, trusted=True, initialise=value) for value in (False, True))
    assert {k: (x.shape, x.dtype) for k, x in fast.state_dict().items()} == {
        k: (x.shape, x.dtype) for k, x in full.state_dict().items()
    }
    assert str(fast) == str(full)


def test_normalisation():
    assert providers.normalisation(nn.Conv2d(3, 3, 1)) == (providers.IMAGENET_MEAN, providers.IMAGENET_STD)
    stated = nn.Identity()
    stated.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": [0.25] * 3}
    assert providers.normalisation(stated) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.mark.parametrize("found", [3, {"mean": "x", "std": 1}, {"input_size": 7, "mean": (0.5,)}])
def test_an_attribute_that_is_no_statement_is_none(found):
    model = nn.Conv2d(3, 3, 1)
    model.pretrained_cfg = found
    assert providers.normalisation(model) == (providers.IMAGENET_MEAN, providers.IMAGENET_STD)


def test_a_deep_network_of_a_file_is_stopped_by_how_many_tensors_the_file_has():
    with pytest.raises(HotswapError, match="is larger than the file that names it could hold"):
        providers.build("timm:test_vit?depth=500", trusted=False, initialise=False, limit=SizeLimit(1 << 40, 9))
    full = providers.build("timm:test_vit", trusted=False, limit=SizeLimit(1 << 40, 0))
    assert len(full.state_dict()) > 40


# --- what a file may name -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        "os:system?command=true",
        "trap:make",
        "torchvision.models:vgg16",
        "torchvision:vgg16?weights=DEFAULT",
        "torchvision:fcn_resnet50?weights_backbone=DEFAULT",
        "timm:test_resnet?pretrained=true",
        "timm:test_resnet?pretrained_cfg=x",
        "timm:test_resnet?checkpoint_path=/etc/passwd",
        "timm:test_resnet?cache_dir=x",
        "timm:test_resnet?scriptable=true",
        "timm:test_resnet?act_layer=../x",
        'timm:test_resnet?out_indices=[1,["https://x"]]',
        "timm:hf-hub:owner/name",
        "timm:local-dir:/tmp",
        "timm:../x",
        "hf:owner/name",
        "hf:../x",
        "smp:Unet?encoder_weights=imagenet",
        "smp:Unet?encoder_name=tu-hf-hub:owner/name",
        "smp:Unet?encoder_name=../x",
        "transformers:SegformerModel?num_labels=3",
        "transformers:models.segformer",
        "torchvision:../x",
        "timm:test_vit?depth=10000000",
        "timm:test_resnet?layers=[1,1,1,1e400]",
    ],
)
def test_a_file_may_not_name(module, offline, spec):
    folder = module("trap", "open(__file__ + '.ran', 'w')")
    with pytest.raises(HotswapError, match="a file may not") as caught:
        providers.build(spec, trusted=False)
    assert "--model" in str(caught.value)
    assert not (folder / "trap.py.ran").exists()


def test_nothing_is_imported_for_a_file_that_names_too_much(monkeypatch):
    def refuse(name):
        raise AssertionError(f"imported {name}")

    monkeypatch.setattr("importlib.import_module", refuse)
    for spec in ("os:system", "timm:x?pretrained=true", "timm:hf-hub:a/b", "torchvision:a.b", "hf:a/b"):
        with pytest.raises(HotswapError):
            providers.build(spec, trusted=False)


@pytest.mark.parametrize("trusted", [True, False])
def test_the_hub_is_out_of_reach_while_a_network_of_a_file_is_built(monkeypatch, trusted):
    timm, constants = pytest.importorskip("timm"), pytest.importorskip("huggingface_hub.constants")
    seen = []
    build = timm.create_model
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(timm, "create_model", lambda name: seen.append(constants.HF_HUB_OFFLINE) or build(name))
    providers.build("timm:test_resnet", trusted=trusted)
    assert seen == [not trusted]
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("spec", "recorded"),
    [
        ("torchvision:vgg16?weights=DEFAULT", "torchvision:vgg16"),
        ("timm:resnet18?pretrained=true&num_classes=3", "timm:resnet18?num_classes=3"),
        ("smp:Unet?encoder_weights=imagenet&classes=3", "smp:Unet?classes=3"),
        ("mynets:make?path=/data/x", "mynets:make?path=/data/x"),
    ],
)
def test_what_is_recorded_of_an_architecture(spec, recorded):
    assert providers.architecture(spec) == recorded


# --- the user's own -----------------------------------------------------------------------------------------


def test_factories_and_classes(module):
    module(
        "own",
        """
        from torch import nn
        def make(channels, bias=True): return nn.Conv2d(channels, 1, 1, bias=bias)
        class Outer:
            class Net(nn.Module): pass
        """,
    )
    made = providers.build("own:make?channels=4&bias=false", trusted=True)
    assert (made.in_channels, made.bias) == (4, None)
    assert type(providers.build("own:Outer.Net", trusted=True)).__name__ == "Net"


@pytest.mark.parametrize(
    ("code", "spec", "reason"),
    [
        ("", "absent:make", "there is no module 'absent'"),
        ("", "absent.inner:make", "there is no module 'absent'"),
        ("", "own.inner:make", "there is no module 'own.inner'"),
        ("def build(): pass", "own:buidl", "module own has no 'buidl'; closest: build"),
        ("make = 3", "own:make", "must name a function that returns a network, got int"),
        ("def make(): return 3", "own:make", "must be a torch.nn.Module, got int"),
        ("def make(): raise KeyError('a\\nb')", "own:make", "could not be built (KeyError"),
        ("def make(): exit(1)", "own:make", "could not be built (SystemExit"),
        ("def make(): pass", "own:make?a=1", "unexpected keyword argument 'a'"),
        ("import absent_inside", "own:make", "importing own failed (ModuleNotFoundError: No module named 'absent_in"),
        ("1 +", "own:make", "importing own failed (SyntaxError"),
        ("1 / 0", "own:make", "importing own failed (ZeroDivisionError"),
        ("exit(0)", "own:make", "importing own failed (SystemExit"),
    ],
)
def test_what_goes_wrong_in_the_users_code_is_one_line(module, code, spec, reason):
    module("own", code)
    with pytest.raises(HotswapError) as caught:
        providers.build(spec, trusted=True)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interrupt_is_no_error_of_the_users(module):
    module("own", "def make(): raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        providers.build("own:make", trusted=True)
