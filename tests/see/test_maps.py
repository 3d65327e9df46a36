"""Heat maps: planted units light up where they must, on every family's grid, on one scale per unit."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from small import tiny_model
from torch import nn

from vitprune.core.errors import UserError
from vitprune.model import declared, families
from vitprune.model.load import opening
from vitprune.model.sites.base import TokenLayout
from vitprune.recipe import inputs
from vitprune.see.pictures import drawing, maps, reading
from vitprune.see.pictures.grid import grid_of

PLAIN = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
SWIN = {
    "img_size": 16, "patch_size": 4, "window_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
    "num_classes": 5,
}  # fmt: skip
HIERA = {"img_size": 32, "embed_dim": 8, "stages": [1, 1], "q_pool": 1, "num_heads": 1, "num_classes": 5}
HF = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 16,
    "patch_size": 8, "num_classes": 5,
}  # fmt: skip
TORCHVISION = {
    "image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24, "num_classes": 5
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": PLAIN | {"img_size": [32, 16]},
    "vit_small_patch14_reg4_dinov2": PLAIN,
    "deit_tiny_distilled_patch16_224": PLAIN,
    "eva02_tiny_patch14_224": PLAIN,
    "naflexvit_base_patch16_gap": PLAIN | {"pos_embed_grid_size": [2, 2]},
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "hiera_tiny_224": HIERA,
    "torchvision:vit_b_16": TORCHVISION,
    "transformers:Dinov2WithRegistersForImageClassification": HF,
}


def planted(size: tuple[int, int] = (28, 14), in_chans: int = 1, prefix: int = 0) -> nn.Module:
    """A ViT whose first unit is the mean of a patch's pixels: attention and norms do nothing, positions are nowhere."""
    model: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=size, patch_size=7, in_chans=in_chans, embed_dim=8, depth=2, num_heads=2,
        num_classes=3, reg_tokens=prefix,
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.patch_embed.proj.weight[0] = 1 / (in_chans * 49)
        for block in model.blocks:
            block.norm2, block.mlp.act = nn.Identity(), nn.ReLU()
            block.mlp.fc1.weight[0, 0] = 1
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(("in_chans", "prefix"), [(1, 0), (3, 4)])
def test_a_unit_that_is_the_mean_of_a_patch_is_that_patch(in_chans: int, prefix: int) -> None:
    model = planted(in_chans=in_chans, prefix=prefix)
    images = torch.rand(3, in_chans, 28, 14)
    sites = families.ffn_sites(model)
    for found in maps.all_maps(model, sites, [[0], [0]], images):
        expected = images.unfold(2, 7, 7).unfold(3, 7, 7).mean((1, 4, 5))
        assert found.shape == (3, 1, 4, 2)
        torch.testing.assert_close(found[:, 0], expected)
    dark = maps.maps(model, sites[0], [0], -images)
    assert not dark.any() and maps.maps(model, sites[0], [0], -images, "pre").max() < 0


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_s_tokens_come_back_to_their_place(name: str) -> None:
    """Without attention, what changes at one corner of the image changes the units there and nowhere else."""
    if name.startswith("transformers:"):
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    args = FAMILIES[name] if ":" in name else FAMILIES[name] | {"in_chans": 3}
    model = opening.open_model(inputs.Model(name=name, args=args)).model
    for key, weight in model.named_parameters():
        weight.copy_(torch.randn(weight.shape) * 0.2)
        if any(part in key for part in ("attn.proj.", "attention.output.dense", "out_proj", "o_proj")):
            weight.zero_()
    height, width = families.input_shape(model)[1:]
    images = torch.zeros(2, 3, height, width)
    images[1, :, : height // 4, -width // 4 :] = torch.rand(3, height // 4, width // 4) * 3 + 1
    for site in families.ffn_sites(model):
        units = list(range(site.size))
        found = maps.maps(model, site, units, images, "pre")
        rows, columns = found.shape[2:]
        change = (found[1] - found[0]).abs().sum(0)
        assert change.argmax() == columns - 1, (site.name, change)  # the upper right corner
        assert rows / columns == height / width
        far = change[rows // 2 :, : max(columns // 2, 1)]
        assert far.max() <= 1e-5 * change.max(), (site.name, change)


def test_tokens_that_are_on_no_known_grid_are_refused_by_the_family_s_name() -> None:
    model = planted()
    site = families.ffn_sites(model)[0]
    with pytest.raises(UserError, match="VisionTransformer: 7 patch tokens are no grid of 4 x 2"):
        grid_of(model, site, 8, (28, 14))
    paths = ("blocks.0.mlp.fc1", "blocks.0.mlp.act", "blocks.0.mlp.fc2")
    own = declared.Foreign(model, [paths], (1, 28, 14), 3, TokenLayout(1, True, 0, 1))
    with pytest.raises(UserError, match="VisionTransformer: the order of its tokens is not known"):
        grid_of(own, own.sites()[0], 9, (28, 14))


def test_units_that_are_not_finite_name_their_block() -> None:
    model: Any = planted()
    model.blocks[1].mlp.fc1.bias[0] = float("nan")
    with pytest.raises(UserError, match="see: block 1: its units are not finite"):
        maps.maps(model, families.ffn_sites(model)[1], [0], torch.rand(1, 1, 28, 14))


def test_upsampling_by_hand() -> None:
    expected = [[0, 0.25, 0.75, 1], [0.5, 0.75, 1.25, 1.5], [1.5, 1.75, 2.25, 2.5], [2, 2.25, 2.75, 3]]
    found = maps.upsample(torch.tensor([[[[0.0, 1], [2, 3]]]]), (4, 4))
    assert found[0, 0].tolist() == expected


def test_a_map_without_a_shape_is_flat_and_said() -> None:
    silent = [(0.0, 2.0, maps.SILENT), (-1.0, 2.0, maps.SILENT), (0.0, 0.0, maps.SILENT)]
    for values, scale, said in [*silent, (1.0, 2.0, maps.EVEN)]:
        level, note = maps.levels(torch.full((3, 3), values), scale)
        assert note == said and np.isfinite(level).all() and len(set(level.flatten())) == 1
    level, note = maps.levels(torch.tensor([[0.5, 4.0]]), 2.0)
    assert level.tolist() == [[0.25, 1.0]] and note is None  # on the unit's scale, not the image's


def test_the_sign_of_a_gated_unit_changes_no_map() -> None:
    torch.manual_seed(0)
    model = opening.open_model(inputs.Model(name="eva02_tiny_patch14_224", args=PLAIN | {"in_chans": 3})).model
    site = families.ffn_sites(model)[0]
    assert reading.gated(site)
    images = torch.randn(2, 3, 16, 16)
    before = maps.maps(model, site, [0, 1], images)
    value = model.get_submodule(site.fc1)  # packed: the gate first
    assert isinstance(value, nn.Linear)
    value.weight[site.size].neg_()
    value.bias[site.size].neg_()
    after = maps.maps(model, site, [0, 1], images)
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize(("count", "quantile"), [(1, 0.9), (7, 0.5), (400, 0.999), (1000, 0.8), (1001, 0.995)])
def test_the_high_quantile_is_numpy_s_in_any_portions(count: int, quantile: float) -> None:
    values = torch.randn(3, count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    for size in (1, 13, count):
        upper = reading.Upper(count, quantile, 3)
        for part in values.split(size, 1):
            upper.add(part)
        np.testing.assert_allclose(upper.value(), np.quantile(values, quantile, axis=1), rtol=1e-12)


def test_tokens_are_those_that_the_head_can_see() -> None:
    model = tiny_model(reg_tokens=2)
    sites = families.ffn_sites(model)
    spans = {c: [reading.tokens_of(model, s, sites, c) for s in sites] for c in ("auto", "cls", "patches", "all")}  # type: ignore[arg-type]
    assert spans["auto"] == [slice(0, None), slice(0, 1)]
    assert spans["cls"] == [slice(0, 1)] * 2 and spans["patches"] == [slice(3, None)] * 2
    pooled = tiny_model(global_pool="avg")
    own = families.ffn_sites(pooled)
    assert reading.tokens_of(pooled, own[-1], own, "auto") == slice(0, None)
    with pytest.raises(UserError, match="reads no class token"):
        reading.tokens_of(pooled, own[0], own, "cls")


@pytest.mark.parametrize("side", ["pre", "post"])
def test_hidden_units_end_the_pass_and_are_what_the_layers_say(side: reading.Side) -> None:
    model: Any = tiny_model()
    images, sites = torch.rand(2, 1, 28, 28), families.ffn_sites(model)
    late = model.head.register_forward_hook(lambda *_: pytest.fail("the pass went on"))
    found = reading.hidden(model, sites, images, side)
    late.remove()
    stream = model.patch_embed(images)
    stream = torch.cat([model.cls_token.expand(2, -1, -1), stream], 1) + model.pos_embed
    for block, got in zip(model.blocks, found, strict=True):
        middle = stream + block.attn(block.norm1(stream))
        key = block.mlp.fc1(block.norm2(middle))
        torch.testing.assert_close(got, key if side == "pre" else block.mlp.act(key))
        stream = block(stream)


def test_mass_on_outlying_tokens_by_hand() -> None:
    model = planted()
    site = families.ffn_sites(model)[1]
    images = torch.ones(1, 1, 28, 14)
    images[0, 0, :7, :7] = 10  # one patch of eight with ten times the norm
    found = maps.maps(model, site, [0], images)
    share = maps.outlier_share(model, site, images, found)
    assert share is not None and share.item() == pytest.approx(10 / 17)
    silent = maps.outlier_share(model, site, images, torch.zeros_like(found))
    assert silent is not None and silent.item() == 0


def test_gradient_map_by_hand() -> None:
    """The unit reads its own patch alone: token n's patch has 0.5ⁿ/49 of every pixel, whatever the class says of the rest."""
    model: Any = planted()
    site = families.ffn_sites(model)[0]
    rising = torch.arange(2).repeat_interleave(7) + 2 * torch.arange(4).repeat_interleave(7)[:, None]
    images = torch.rand(1, 1, 28, 14) + rising
    model.blocks[0].mlp.fc2.weight[1, 0] = 1
    model.norm = nn.Identity()
    model.head.weight[2, 1] = 1  # class 2 reads what the unit writes: the brightest patch speaks for it most
    found = maps.gradient_map(model, site, 0, 2, images, [0.5])
    expected = torch.tensor([0.5**n for n in range(8)]).flip(0).view(4, 2) / 49 / 0.5
    torch.testing.assert_close(found[0], expected)
    assert images.grad is None


def test_auroc_by_hand() -> None:
    values, own = np.array([1.0, 3, 2, 2, 0]), np.array([0, 1, 1, 0, 0], bool)
    pairs = [(a > b) + (a == b) / 2 for a in values[own] for b in values[~own]]
    assert maps.auroc(values, own) == pytest.approx(np.mean(pairs))
    assert maps.auroc(values, own | True) is None and maps.auroc(np.ones(4), np.array([1, 0, 0, 1], bool)) == 0.5


def test_colours_can_be_read_in_grey() -> None:
    ramp = drawing.coloured(np.linspace(0, 1, 200)[None])
    grey = np.array(Image.fromarray(np.rint(ramp).astype(np.uint8)).convert("L"), int)[0]
    assert (np.diff(grey) >= 0).all() and grey[-1] - grey[0] > 200


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_png_of_the_same_bytes(channels: int) -> None:
    mean, std = [0.4, 0.5, 0.6][:channels], [0.2, 0.3, 0.4][:channels]
    eight = np.random.default_rng(0).integers(0, 256, (20, 12, channels), np.uint8)
    means, stds = (torch.tensor(v)[:, None, None] for v in (mean, std))
    image = (torch.from_numpy(eight).permute(2, 0, 1).double() / 255 - means) / stds
    shown = drawing.pixels(image, mean, std)
    assert shown.shape == (20, 12, 3) and (shown == eight).all()
    over = drawing.overlay(shown, np.linspace(0, 1, 240).reshape(20, 12))
    data = drawing.png(over)
    assert data == drawing.png(over) and (np.array(Image.open(io.BytesIO(data))) == over).all()
    whole, half = np.ones((20, 12), bool), np.zeros((20, 12), bool)
    half[:10] = True
    marked = drawing.marked(shown * 0, half)  # of a black image the mask is seen and nothing else
    assert (marked[:10] == marked[0, 0]).all() and marked[0, 0].max() > 100 and not marked[10:].any()
    assert (drawing.marked(shown, ~whole) == np.rint(shown / 2)).all()


def test_a_picture_stays_below_what_a_report_embeds() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 90, 3), np.uint8)
    for limit in (20_000, 4_000):
        assert len(drawing.png(noise, limit)) <= limit
