"""Models and weights from elsewhere: Google's npz, torchvision, transformers, and a module of one's own."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from small import ARCHITECTURE, ARGS, model_folder, plan_for, tiny_model
from torch import Tensor, nn

import vitprune
from vitprune.core.errors import UserError
from vitprune.images.preprocess import Preprocessing
from vitprune.model import families
from vitprune.model.load import build, opening, saving
from vitprune.model.load.loaded import Loaded
from vitprune.pruning import surgery
from vitprune.recipe import inputs

TORCHVISION = {
    "image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24, "num_classes": 5,
}  # fmt: skip


def open_spec(**spec: Any) -> Loaded:
    return opening.open_model(inputs.Model(**spec))


def googles(model: nn.Module) -> dict[str, np.ndarray]:
    """A timm ViT's weights under the names, in the layouts, of the original Flax checkpoints."""
    state = {key: value.double().numpy().astype(np.float32) for key, value in model.state_dict().items()}
    dim, heads = 16, 2
    made = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(2):
        ours, theirs = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for norm, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            made[f"{theirs}/{name}/scale"] = state[f"{ours}.{norm}.weight"]
            made[f"{theirs}/{name}/bias"] = state[f"{ours}.{norm}.bias"]
        weights = np.split(state[f"{ours}.attn.qkv.weight"], 3)
        biases = np.split(state[f"{ours}.attn.qkv.bias"], 3)
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            made[f"{attention}/{name}/kernel"] = weight.T.reshape(dim, heads, dim // heads)
            made[f"{attention}/{name}/bias"] = bias.reshape(heads, dim // heads)
        made[f"{attention}/out/kernel"] = state[f"{ours}.attn.proj.weight"].T.reshape(heads, dim // heads, dim)
        made[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        for k, name in ((0, "fc1"), (1, "fc2")):
            made[f"{theirs}/MlpBlock_3/Dense_{k}/kernel"] = state[f"{ours}.mlp.{name}.weight"].T
            made[f"{theirs}/MlpBlock_3/Dense_{k}/bias"] = state[f"{ours}.mlp.{name}.bias"]
    return made


def test_googles_npz_is_the_model_it_was_written_from(tmp_path):
    model, images = tiny_model(in_chans=3), torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "w.npz", **googles(model))
    loaded = open_spec(name=ARCHITECTURE, checkpoint=tmp_path / "w.npz", args={**ARGS, "num_classes": 3})
    torch.testing.assert_close(loaded.model(images), model(images), rtol=1e-5, atol=1e-5)


def test_an_npz_that_leaves_something_out_is_refused(tmp_path):
    """timm would leave a head of another size, or a missing one, with random weights and say nothing."""
    whole = googles(tiny_model(in_chans=3))
    np.savez(tmp_path / "w.npz", **whole)
    spec = {"name": ARCHITECTURE, "checkpoint": tmp_path / "w.npz"}
    with pytest.raises(UserError, match=r"head\.weight"):
        open_spec(**spec, args={**ARGS, "num_classes": 4})
    np.savez(tmp_path / "w.npz", **{key: value for key, value in whole.items() if not key.startswith("cls")})
    with pytest.raises(UserError, match=r"w\.npz: does not fit"):
        open_spec(**spec, args={**ARGS, "num_classes": 3})
    np.savez(tmp_path / "w.npz", **whole, more=np.array([{"a": 1}], dtype=object))  # pickled
    with pytest.raises(UserError, match=r"w\.npz: `more\.npy` holds Python objects, which could run code"):
        open_spec(**spec, args={**ARGS, "num_classes": 3})


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_with_a_local_file_of_its_own(tmp_path, suffix):
    settings = dict(TORCHVISION)
    net = build.build("torchvision:vit_b_16", settings).net
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.2)
    path = tmp_path / f"w{suffix}"
    torch.save(net.state_dict(), path) if suffix == ".pth" else save_file(net.state_dict(), path)
    loaded = open_spec(name="torchvision:vit_b_16", checkpoint=path, args=settings)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(loaded.model(images), net.eval()(images).detach())
    with pytest.raises(UserError, match="does not fit VisionTransformer"):
        open_spec(name="torchvision:vit_b_16", checkpoint=path, args=settings | {"mlp_dim": 32})


def test_torchvisions_full_size_is_torchvisions():
    from torchvision.models import vit_b_32

    with torch.device("meta"):
        made, theirs = build.build("torchvision:vit_b_32", {}), vit_b_32()
    assert {k: v.shape for k, v in made.net.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("torchvision:vit_b_61", {}, "did you mean `vit_b_16`"),
        ("torchvision:resnet18", {}, "not a timm model"),
        ("torchvision:vit_b_16", {"weights": "DEFAULT"}, "unknown argument weights"),
        ("transformers:BertModel", {}, "no such model folder"),
        ("transformers:ViTForImageClassification", {"attn_implementation": "x"}, "unknown argument"),
        ("elsewhere:vit_b_16", {}, "not a timm model"),
    ],
)
def test_names_that_are_refused(name, args, says):
    if "ViTFor" in name:
        pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    with pytest.raises(UserError, match=says):
        open_spec(name=name, args=args) if args else open_spec(name=name)


@pytest.mark.parametrize("kind", ["ViTForImageClassification", "Dinov2ForImageClassification"])
def test_a_folder_that_transformers_wrote(tmp_path, kind):
    """Its weights, its labels and its preprocessing; pruned and saved it loads without transformers' files."""
    transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    made = getattr(transformers, kind)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    sizes |= {"intermediate_size": 24} if kind.startswith("ViT") else {"mlp_ratio": 2, "use_swiglu_ffn": True}
    net = made(made.config_class(**sizes, id2label={0: "cat", 1: "dog", 2: "cow"})).eval()
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.2)
    net.save_pretrained(tmp_path / "hf")
    prepared = {
        "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3, "do_center_crop": True,
        "size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16},
    }  # fmt: skip
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(prepared))
    loaded = open_spec(name=f"transformers:{tmp_path / 'hf'}")
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(loaded.model(images), net(images).logits.detach())
    assert loaded.labels == ["cat", "dog", "cow"]
    wanted = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bicubic", "crop_pct": 0.8}
    assert wanted.items() <= loaded.data_config.items()
    sites = families.ffn_sites(loaded.model)
    assert bool(sites[0].gate) == kind.startswith("Dino")
    slim = surgery.slim(
        loaded.model, plan_for(loaded.model, [torch.arange(site.size) % 3 > i for i, site in enumerate(sites)])
    )
    saving.save(tmp_path / "slim", loaded, slim, {})
    again = open_spec(name=f"local-dir:{tmp_path / 'slim'}")
    assert torch.equal(again.model(images), slim(images))
    assert again.labels == loaded.labels
    assert Preprocessing.of(again.data_config) == Preprocessing.of(loaded.data_config)


def test_a_hub_id_is_a_folder_that_is_fetched(tmp_path, monkeypatch):
    """Only the two files are asked for, and they are read as any folder is."""
    folder, asked = model_folder(tmp_path / "hub"), []
    monkeypatch.setattr("vitprune.model.load.weights.fetching.unreached", lambda: None)

    def fetch(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    loaded = open_spec(name="hf-hub:someone/tiny@v1", pretrained=True)
    assert asked == [
        ("someone/tiny", {"revision": "v1", "allow_patterns": ["config.json", "model.safetensors"]}),
    ]
    assert all(map(torch.equal, loaded.model.state_dict().values(), vitprune.load(folder).state_dict().values()))
    for changed in ({"pretrained": False}, {"args": {"depth": 1}}):
        with pytest.raises(UserError, match="pretrained: true"):
            open_spec(**({"name": "hf-hub:someone/tiny", "pretrained": True} | changed))

    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(UserError, match=r"cannot be fetched \(no network\); copy its folder"):
        open_spec(name="hf-hub:someone/tiny", pretrained=True)


class Own(nn.Module):
    """A classifier of nobody's family: pixels → tokens → two FFNs → mean → logits."""

    def __init__(self, tie: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(16, 8), nn.Linear(8, 5)
        self.up = nn.ModuleList(nn.Linear(8, 12) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(12, 8) for _ in range(2))
        self.act, self.tie = nn.GELU(), tie
        self.norm = nn.LayerNorm(12) if norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        x = self.into(images.flatten(1).unflatten(1, (4, 16)))
        for i, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            hidden = self.norm(self.act(up(x))) if i else self.act(up(x))
            x = x + down(hidden)
            if self.tie and i:
                x = x + hidden[..., :8]
        return self.head(x.mean(1))


OWN_FFNS = [("up.0", "act", "down.0"), ("up.1", "act", "down.1")]


def declared(net: nn.Module, ffns: Any = OWN_FFNS) -> nn.Module:
    return vitprune.declare(net, ffns, input_shape=(1, 8, 8), num_classes=5)


def test_a_module_of_ones_own_goes_the_whole_road(tmp_path):
    torch.manual_seed(0)
    net = Own().train()
    model = declared(net)
    assert net.training and all(weight.requires_grad for weight in net.parameters())
    images, labels = torch.randn(12, 1, 8, 8), torch.arange(12) % 5
    for criterion in ("variance", "magnitude-l2", "fisher", "taylor"):
        scores = vitprune.discover(model, images, labels, criterion=criterion, t=3)
    bare = vitprune.prune(model, scores, keep="4 units", recovery="none")
    slim = vitprune.prune(model, scores, keep="4 units", images=images)
    dense = model(images)
    assert (slim(images) - dense).norm() < (bare(images) - dense).norm()
    assert [site.size for site in families.ffn_sites(slim)] == [4, 4]
    assert vitprune.evaluate(slim, images, labels).n == 12
    vitprune.export(slim, tmp_path / "own.onnx")
    for criterion, says in (("jas", "class token"), ("class-alignment", "blocks")):
        with pytest.raises(UserError, match=says):
            vitprune.discover(model, images, labels, criterion=criterion, t=3)


@pytest.mark.parametrize(
    ("net", "ffns", "says"),
    [
        (Own(tie=True), OWN_FFNS, r"up\.1: its outputs are not"),
        (Own(norm=True), OWN_FFNS, r"up\.1: its outputs are not"),
        (Own(), [("up.0", "act", "down.2")], r"down\.2: the model Own has no such"),
        (Own(), [("up.0", "act", "act")], r"act: GELU is not supported"),
        (Own(), [("up.0", "act", "head")], r"head: reads 8 hidden units, up\.0 makes 12"),
        (Own(), [], "no FFNs"),
    ],
)
def test_declarations_that_are_not_true_are_refused_by_name(net, ffns, says):
    with pytest.raises(UserError, match=says):
        declared(net, ffns)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: setattr(m.blocks[1], "mlp", nn.Sequential(nn.Linear(16, 16))), r"blocks\.1\.mlp: Sequential"),
        (lambda m: setattr(m.blocks[1].mlp, "norm", nn.BatchNorm1d(64)), r"blocks\.1\.mlp\.norm: BatchNorm1d"),
        (lambda m: setattr(m.blocks[1].mlp, "fc1", m.blocks[0].mlp.fc1), r"blocks\.0\.mlp\.fc1: shares its weights"),
        (lambda m: m.blocks.append(nn.Identity()), r"blocks\.2: Identity"),
        (lambda m: setattr(m, "global_pool", ""), "global_pool"),
    ],
)
def test_a_module_that_does_not_fit_is_named(change, says):
    model = tiny_model()
    change(model)
    facts = families.token_layout if says == "global_pool" else families.ffn_sites
    with pytest.raises(UserError, match=says):
        facts(model)


@pytest.mark.parametrize("name", ["resnet18", "cait_xxs24_224", "mvitv2_tiny", "crossvit_tiny_240"])
def test_families_that_are_not_here_are_refused(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(UserError, match="not supported"):
        families.ffn_sites(model)
