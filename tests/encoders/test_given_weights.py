"""Weights in others' names: each kind fills the whole encoder, or is refused with the reason."""

import json
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, VisionTransformer

from moco.encoders import Weights, build_encoder, fill, read_file, save_encoder
from moco.encoders.published import read_hub, read_timm, read_torchvision
from moco.runs.weights import load_weights
from moco.runtime.errors import UserError


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18")
    for name, buffer in encoder.named_buffers():
        buffer.fill_(7) if name.endswith("num_batches_tracked") else buffer.uniform_(0.5, 1.5)
    return encoder


def assert_filled(encoder: nn.Module, source: nn.Module) -> None:
    expected = source.state_dict()
    assert {k for k, value in encoder.state_dict().items() if not torch.equal(value, expected[k])} == set()


def prefixed(prefix: str, state: dict) -> dict:
    return {f"{prefix}{key}": value for key, value in state.items()}


def zeros(state: dict) -> dict:
    return {key: torch.zeros_like(value) for key, value in state.items()}


def children(state: dict) -> dict:
    """As nn.Sequential(*resnet.children()) names them."""
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {".".join([numbers[key.split(".")[0]], *key.split(".")[1:]]): value for key, value in state.items()}


LAYOUTS = {
    "moco-v1": lambda s: {
        "state_dict": prefixed("module.encoder_k.", zeros(s))
        | prefixed("module.encoder_q.", s)
        | {"module.queue": s["conv1.weight"]}
    },
    "moco-v3": lambda s: {
        "state_dict": prefixed("module.momentum_encoder.", zeros(s))
        | prefixed("module.base_encoder.", s)
        | {"module.base_encoder.fc.0.weight": torch.ones(4, 512), "module.predictor.0.weight": torch.ones(4, 4)}
    },
    "moco-v3, momentum alone": lambda s: {"state_dict": prefixed("module.momentum_encoder.", s)},
    "dino": lambda s: {
        "student": prefixed("module.backbone.", zeros(s)),
        "teacher": prefixed("backbone.", s) | {"head.mlp.0.weight": torch.ones(4, 512)},
    },
    "solo-learn": lambda s: {
        "state_dict": prefixed("momentum_backbone.", zeros(s))
        | prefixed("backbone.", s)
        | {"projector.0.weight": torch.ones(4, 4)}
    },
    "lightly": lambda s: {
        "state_dict": prefixed("backbone.", children(s)) | {"projection_head.layers.0.weight": torch.ones(4)}
    },
    "lightning": lambda s: {"state_dict": prefixed("model.encoder.", s)},
    "vissl": lambda s: {
        "classy_state_dict": {"base_model": {"model": {"trunk": prefixed("_feature_blocks.", s), "heads": {}}}}
    },
    "mmselfsup": lambda s: {
        "meta": {"epoch": 3},
        "state_dict": prefixed("backbone.", s) | {"neck.fc0.weight": torch.ones(4)},
    },
    "openselfsup": lambda s: {"state_dict": prefixed("encoder_q.0.", s) | {"encoder_q.1.mlp.0.weight": torch.ones(4)}},
    "model": lambda s: {"model": prefixed("module.", s), "epoch": 3},
    "compiled": lambda s: prefixed("_orig_mod.", s),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_fills_the_whole_encoder(tmp_path, source, layout):
    torch.save(LAYOUTS[layout](source.state_dict()), tmp_path / "weights.pth")
    encoder = build_encoder("resnet18")
    loaded = load_weights(str(tmp_path / "weights.pth"), encoder)
    assert_filled(encoder, source)
    assert loaded.tensors == len(source.state_dict())
    assert loaded.parameters == sum(p.numel() for p in source.parameters())


def test_what_is_not_used_is_named_in_one_line(tmp_path, source):
    torch.save(LAYOUTS["moco-v3"](source.state_dict()), tmp_path / "v3.pth.tar")
    line = str(load_weights(str(tmp_path / "v3.pth.tar"), build_encoder("resnet18")))
    assert line == (
        f"{tmp_path}/v3.pth.tar: 120 tensors, 11,176,512 parameters, the whole encoder; "
        "tensors not used: momentum_encoder (120), fc (1), predictor (1)"
    )


class Vit(nn.Module):
    """A ViT in timm's and MoCo v3's names, written out from its definition."""

    def __init__(self, dim: int = 384, depth: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.heads = heads
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, dim)), nn.Parameter(torch.randn(1, 197, dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, 16, 16)})
        self.blocks = nn.ModuleList(nn.ModuleDict(self._block(dim)) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    @staticmethod
    def _block(dim: int) -> dict[str, nn.Module]:
        attention = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})
        return {"norm1": nn.LayerNorm(dim, 1e-6), "attn": attention, "norm2": nn.LayerNorm(dim, 1e-6), "mlp": mlp}

    def forward(self, images):
        tokens = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), tokens], dim=1) + self.pos_embed
        for block in self.blocks:
            qkv = block["attn"]["qkv"](block["norm1"](x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
            x = x + block["attn"]["proj"](mixed)
            x = x + block["mlp"]["fc2"](nn.functional.gelu(block["mlp"]["fc1"](block["norm2"](x))))
        return self.norm(x)[:, 0]


@torch.no_grad()
def test_a_released_vit_of_moco_v3_gives_the_same_features(tmp_path):
    torch.manual_seed(0)
    vit, images = Vit(), torch.randn(2, 3, 224, 224)
    state = prefixed("module.base_encoder.", vit.state_dict()) | {
        "module.base_encoder.head.0.weight": torch.ones(4, 384)
    }
    torch.save({"arch": "vit_small", "state_dict": state}, tmp_path / "vit-s-300ep.pth.tar")
    weights = read_file(tmp_path / "vit-s-300ep.pth.tar")
    assert (weights.encoder, weights.heads) == ("vit_s_16", 12)
    encoder = build_encoder("vit_s_16").eval()
    fill(encoder, weights)
    torch.testing.assert_close(encoder(images), vit(images), atol=1e-4, rtol=1e-4)


def test_a_vit_with_other_heads_is_refused():
    """All its tensors have the right shapes."""
    encoder = build_encoder("vit_s_16")
    with pytest.raises(UserError, match=r"its ViT has 6 attention heads, the encoder 12"):
        fill(encoder, Weights("dino.pth", Vit(heads=6).state_dict()))
    six = VisionTransformer(image_size=224, patch_size=16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536)
    six.heads = nn.Sequential()
    fill(six, Weights("dino.pth", Vit(heads=6).state_dict()))
    with pytest.raises(UserError, match=r"12 attention heads, the encoder 6"):
        fill(six, Weights("v3.pth.tar", Vit().state_dict(), heads=12))


@pytest.mark.parametrize(("name", "optimised"), [("linear_v2.pth.tar", False), ("best.pth.tar", True)])
def test_a_linear_classifier_is_refused(tmp_path, source, name, optimised):
    state = prefixed("module.", source.state_dict())
    state |= {"module.fc.weight": torch.ones(1000, 512), "module.fc.bias": torch.ones(1000)}
    optimizer = {"optimizer": {"param_groups": [{"params": [0, 1]}]}} if optimised else {}
    torch.save({"arch": "resnet18", "state_dict": state, **optimizer}, tmp_path / name)
    with pytest.raises(UserError, match=r"holds a linear classifier \(module\.fc\.weight\) .* on a frozen encoder"):
        load_weights(str(tmp_path / name), build_encoder("resnet18"))


def test_a_supervised_state_dict_is_no_linear_classifier(tmp_path, source):
    torch.save(source.state_dict() | {"fc.weight": torch.ones(9, 512)}, tmp_path / "supervised.pth")
    assert load_weights(str(tmp_path / "supervised.pth"), build_encoder("resnet18")).unused == ("fc (1)",)


@pytest.mark.parametrize(
    ("given", "wanted", "cause"),
    [
        (("resnet18", False), ("resnet18", True), "another stem: --no-small-stem"),
        (("resnet18", True), ("resnet18", False), "another stem: --small-stem"),
        (("resnet34", False), ("resnet18", False), "another architecture"),  # all of ResNet-18's tensors are in it
        (("resnet18", False), ("resnet34", False), "another architecture"),
        (("resnet18", False), ("resnet18w0.5", False), "another width"),
    ],
)
def test_a_refusal_gives_the_likely_cause(given, wanted, cause):
    weights = Weights("weights.pth", build_encoder(*given).state_dict())
    with pytest.raises(UserError, match=r"weights\.pth does not fit the encoder: ") as caught:
        fill(build_encoder(*wanted), weights)
    assert str(caught.value).endswith(f"({cause})")
    assert "\n" not in str(caught.value)


def test_one_tensor_that_is_missing_is_named(source):
    state = {key: value for key, value in source.state_dict().items() if key != "layer4.1.bn2.running_var"}
    with pytest.raises(UserError, match=r"missing: layer4\.1\.bn2\.running_var \("):
        fill(build_encoder("resnet18"), Weights("some.pth", state))


def test_values_that_are_not_finite_are_refused(source):
    state = source.state_dict() | {"bn1.bias": torch.full((64,), torch.nan)}
    with pytest.raises(UserError, match=r"not all values are finite: bn1\.bias"):
        fill(build_encoder("resnet18"), Weights("some.pth", state))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_detectron2_s_files_are_refused(tmp_path):
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"model": {"stem.conv1.weight": np.zeros(3)}}))
    with pytest.raises(UserError, match="more than tensors"):
        read_file(tmp_path / "R-50.pkl")
    state = {"stem.conv1.weight": torch.zeros(64, 3, 7, 7), "res2.0.conv1.weight": torch.zeros(64, 64, 1, 1)}
    with pytest.raises(UserError, match="these are Detectron2's names"):
        fill(build_encoder("resnet50"), Weights("model.pth", prefixed("backbone.", state)))


def test_torchvision_s_weights(monkeypatch, source):
    asked = {}

    def download(url, **options):
        asked.update(options, url=url)
        return dict(source.state_dict()) | {"fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    encoder = build_encoder("resnet18")
    weights = read_torchvision("torchvision:resnet18:IMAGENET1K_V1")
    assert fill(encoder, weights).unused == ("fc (2)",)
    assert_filled(encoder, source)
    assert (asked["url"], asked["weights_only"]) == (ResNet18_Weights.IMAGENET1K_V1.url, True)
    assert weights.encoder == "resnet18"


def test_torchvision_s_weights_that_are_not_there(monkeypatch, tmp_path):
    def no_network(*_arguments, **_options):
        raise OSError("Name or service not known\nmore")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(UserError, match=r"torchvision:resnet18: https:.* cannot be downloaded, .*: Name or service"):
        read_torchvision("torchvision:resnet18")
    with pytest.raises(UserError, match="no such weights for resnet18: there are IMAGENET1K_V1"):
        read_torchvision("torchvision:resnet18:V9")
    with pytest.raises(UserError, match="did you mean resnet18"):
        read_torchvision("torchvision:resnet_18")


def test_timm_s_weights(monkeypatch, source):
    source.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

    def create_model(name, pretrained, num_classes):
        if name == "resnet50":
            raise RuntimeError("We couldn't connect\nto the hub")
        assert (name, pretrained, num_classes) == ("resnet18.a1_in1k", True, 0)
        return source

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model, is_model=lambda _name: True))
    encoder = build_encoder("resnet18")
    loaded = fill(encoder, read_timm("timm:resnet18.a1_in1k"))
    assert_filled(encoder, source)
    assert "normalised by mean (0.5, 0.5, 0.5)" in str(loaded)
    with pytest.raises(UserError, match=r"timm:resnet50: its weights .*: We couldn't connect$"):
        read_timm("timm:resnet50")


def test_a_hub_s_folder_and_repository(monkeypatch, tmp_path, source):
    save_encoder(source, tmp_path / "model.safetensors")
    settings = {
        "architecture": "resnet18",
        "pretrained_cfg": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))

    def download(name, file):
        if name != "someone/resnet" or not (tmp_path / file).exists():
            raise FileNotFoundError(f"{name}: offline\nmore")
        return str(tmp_path / file)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    for spec in (f"hf:{tmp_path}", "hf:someone/resnet"):
        encoder, weights = build_encoder("resnet18"), read_hub(spec)
        loaded = fill(encoder, weights)
        assert_filled(encoder, source)
        assert (weights.encoder, loaded.remark) == ("resnet18", "")
    with pytest.raises(UserError, match=r"hf:someone/else: .*: someone/else: offline$"):
        read_hub("hf:someone/else")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        read_hub(f"hf:{tmp_path}/empty")
