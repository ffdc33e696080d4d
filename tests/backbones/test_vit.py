"""PlainViT: tokens as by the formulas of the papers, windows, any image size, and weights of MAE, DINOv2 and DINOv3."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.patch_embed import resample_patch_embed

from maskrcnn_plus.backbones import PlainViT
from maskrcnn_plus.backbones.window_attention import window_attention

TINY = {"embed_dim": 32, "depth": 4, "num_heads": 2}
VIT, DINOV2, DINOV2_REG, DINOV3 = (
    "vit_tiny_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
)


def random_image(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tiny(name=VIT, *, depth=4, dtype=torch.float64, seed=0, options=None, **arguments):
    """A narrow network whose every parameter is random, layer scales and biases included, in evaluation mode."""
    torch.manual_seed(seed)
    model = PlainViT(name, options={**TINY, "depth": depth, **(options or {})}, **arguments).to(dtype).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.15 * torch.randn(parameter.shape, dtype=dtype))
    return model


def naive_attention(tensors, x, heads):
    """softmax(q k / sqrt(d)) v, head by head; x is [T, C]."""
    q, k, v = (x @ tensors["attn.qkv.weight"].T + tensors["attn.qkv.bias"]).chunk(3, dim=1)
    outputs = []
    for q_head, k_head, v_head in zip(*(part.chunk(heads, dim=1) for part in (q, k, v)), strict=True):
        weights = (q_head @ k_head.T / math.sqrt(q_head.shape[1])).exp()
        outputs.append(weights @ v_head / weights.sum(dim=1, keepdim=True))
    return torch.cat(outputs, dim=1) @ tensors["attn.proj.weight"].T + tensors["attn.proj.bias"]


def naive_windows(attend, tokens, grid, window, num_prefix):
    """`attend` on the prefix and the patches of each window, cell by cell; the prefix is averaged over the windows."""
    result, prefixes = torch.zeros_like(tokens), []
    for top in range(0, grid[0], window):
        for left in range(0, grid[1], window):
            indices = [
                num_prefix + row * grid[1] + column
                for row in range(top, min(top + window, grid[0]))
                for column in range(left, min(left + window, grid[1]))
            ]
            attended = attend([*range(num_prefix), *indices])
            prefixes.append(attended[:num_prefix])
            for index, value in zip(indices, attended[num_prefix:], strict=True):
                result[index] = value
    result[:num_prefix] = torch.stack(prefixes).mean(dim=0)
    return result


def norm(x, weight, bias):
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + 1e-6).sqrt() * weight + bias


def reference_vit(model, image, *, heads=2, window=0, global_blocks=(), has_class_token=True):
    """[3, height, width] -> [C, H, W] from the formulas of a ViT with learned positions."""
    state = model.net.state_dict()
    kernel, size = state["patch_embed.proj.weight"], model.patch_size
    grid = (image.shape[1] // size, image.shape[2] // size)
    patches = [
        image[:, size * row : size * row + size, size * column : size * column + size].flatten()
        for row in range(grid[0])
        for column in range(grid[1])
    ]
    tokens = torch.stack(patches) @ kernel.flatten(1).T + state["patch_embed.proj.bias"]
    num_prefix = int(has_class_token)
    side = math.isqrt(state["pos_embed"].shape[1])
    positions = state["pos_embed"][:, num_prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if grid != (side, side):
        positions = F.interpolate(positions.float(), size=grid, mode="bicubic", antialias=True).double()
    tokens = tokens + positions[0].flatten(1).T
    if has_class_token:
        tokens = torch.cat([state["cls_token"][0] + state["pos_embed"][0, :1], tokens])
    for index in range(len(model.net.blocks)):
        prefix = f"blocks.{index}."
        block = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        x = norm(tokens, block["norm1.weight"], block["norm1.bias"])
        if window and index not in global_blocks:
            attended = naive_windows(
                lambda i, x=x, b=block: naive_attention(b, x[i], heads), x, grid, window, num_prefix
            )
        else:
            attended = naive_attention(block, x, heads)
        tokens = tokens + attended
        x = norm(tokens, block["norm2.weight"], block["norm2.bias"])
        hidden = x @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        tokens = tokens + hidden @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"]
    return tokens[num_prefix:].T.reshape(-1, *grid)


@pytest.mark.parametrize("size", [(224, 224), (48, 112), (16, 16)])
@pytest.mark.parametrize("keep", [True, False])
def test_global_attention_is_the_formula(size, keep):
    model = tiny(window_size=0, keep_prefix_tokens=keep)
    image = random_image(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        features = model(image)["last_feat"]
        expected = torch.stack([reference_vit(model, one, has_class_token=keep) for one in image])
    assert (features - expected).abs().max() < 1e-10
    assert expected.std() > 0.1


@pytest.mark.parametrize(("window", "size"), [(2, (64, 96)), (3, (112, 80)), (4, (48, 144)), (14, (48, 112))])
@pytest.mark.parametrize("keep", [True, False])
def test_windowed_attention_is_the_formula(window, size, keep):
    model = tiny(window_size=window, global_blocks=[1, 3], keep_prefix_tokens=keep)
    image = random_image(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        features = model(image)["last_feat"]
        expected = torch.stack(
            [reference_vit(model, one, window=window, global_blocks=(1, 3), has_class_token=keep) for one in image]
        )
    assert (features - expected).abs().max() < 1e-10


def test_windows_that_fill_the_grid_are_those_of_vitdet():
    """ViTDet partitions a map into [N * windows, w * w, C] by reshapes; where nothing is padded both are the same."""
    model = tiny(window_size=3)
    attention = model.net.blocks[0].attn
    tokens = random_image(2, 6 * 9, 32, dtype=torch.float64)
    windows = tokens.view(2, 2, 3, 3, 3, 32).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, 32)
    with torch.no_grad():
        expected = attention(windows).view(2, 2, 3, 3, 3, 32).permute(0, 1, 3, 2, 4, 5).reshape(2, 54, 32)
        result = window_attention(attention, tokens, (6, 9), 3)
    assert (result - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", [VIT, DINOV2, DINOV2_REG, DINOV3])
def test_all_global_is_the_network_of_timm(name):
    torch.manual_seed(0)
    reference = timm.create_model(name, num_classes=0, dynamic_img_size=True, depth=2).eval()
    patch = reference.patch_embed.patch_size[0]
    model = PlainViT(name, patch_size=patch, window_size=0, final_norm=True, options={"depth": 2}).eval()
    missing = model.net.load_state_dict(reference.state_dict(), strict=False)
    assert not missing.missing_keys
    for size in (reference.patch_embed.img_size if name == VIT else (4 * patch, 4 * patch), (3 * patch, 5 * patch)):
        with torch.no_grad():
            image = random_image(1, 3, *size)
            tokens = reference.forward_features(image)[:, reference.num_prefix_tokens :]
            feature = model(image)["last_feat"]
        assert torch.equal(feature.flatten(2).transpose(1, 2), tokens)


def test_a_window_that_covers_the_image_is_global_attention():
    for name in (VIT, DINOV2_REG, DINOV3, "vit_small_patch16_rope_mixed_224"):
        windowed = tiny(name, window_size=7, global_blocks=[])
        whole = tiny(name, window_size=0)
        whole.load_state_dict(windowed.state_dict())
        image = random_image(2, 3, 80, 112, dtype=torch.float64)
        with torch.no_grad():
            difference = (windowed(image)["last_feat"] - whole(image)["last_feat"]).abs().max()
        assert difference < 1e-10, name


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", [DINOV3, "vit_small_patch16_rope_mixed_224"])
def test_rotary_embedding_of_a_patch_is_the_same_in_its_window(name, keep):
    model = tiny(name, window_size=3, keep_prefix_tokens=keep)
    grid, prefix = (5, 7), model.net.num_prefix_tokens
    assert (prefix > 0) == keep
    rope = model.net.rope.get_embed(shape=grid)
    rope = rope[0] if rope.dim() > 2 else rope  # of the first block where each has its own
    attention = model.net.blocks[0].attn
    tokens = random_image(2, prefix + 35, 32, dtype=torch.float64)

    def attend(one, indices):
        patches = [index - prefix for index in indices[prefix:]]
        return attention(one[None, indices], rope=rope[..., patches, :])[0]

    with torch.no_grad():
        result = window_attention(attention, tokens, grid, 3, prefix, rope)
        for one, attended in zip(tokens, result, strict=True):
            expected = naive_windows(lambda i, one=one: attend(one, i), one, grid, 3, prefix)
            assert (attended - expected).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["vit_base_patch16_224.mae", DINOV2, DINOV2_REG, DINOV3])
def test_families_take_images_that_are_not_square(name):
    model = PlainViT(
        name, options={"depth": 2, "embed_dim": 48, "num_heads": 3}, window_size=2, global_blocks=[1]
    ).eval()
    assert model.output_shape()["last_feat"].stride == model.size_divisibility == 16
    with torch.no_grad():
        feature = model(random_image(1, 3, 48, 80))["last_feat"]
    assert feature.shape == (1, model.output_shape()["last_feat"].channels, 3, 5)
    assert feature.isfinite().all()


def test_position_embeddings_are_unchanged_at_the_native_size():
    model = tiny(window_size=0)
    embedded = model.net._pos_embed(torch.zeros(1, 14, 14, 32, dtype=torch.float64))
    assert torch.equal(embedded[:, 1:], model.net.pos_embed[:, 1:])


def test_patches_of_14_pixels_are_resampled_to_16_and_the_grid_of_positions_stays(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model(DINOV2, **TINY)
    torch.save(source.state_dict(), tmp_path / "dinov2.pth")
    model = PlainViT(DINOV2, options=TINY, weights=str(tmp_path / "dinov2.pth"))
    kernel = model.net.patch_embed.proj.weight
    assert torch.equal(kernel, resample_patch_embed(source.patch_embed.proj.weight, [16, 16]))
    assert torch.equal(model.net.pos_embed, source.pos_embed)
    native = PlainViT(DINOV2, options=TINY, weights=str(tmp_path / "dinov2.pth"), patch_size=14)
    # A smooth image seen at 16 pixels a patch looks as it does at 14 pixels a patch.
    ramp = torch.linspace(-1, 1, 64)
    fine = (ramp.view(-1, 1) * ramp).expand(1, 3, 64, 64)
    coarse = F.interpolate(fine, size=(56, 56), mode="bicubic", antialias=True)
    with torch.no_grad():
        a, b = model.net.patch_embed(fine), native.net.patch_embed(coarse)
    assert (a - b).abs().max() < 0.02 * b.abs().max()


def test_weights_of_a_file_arrive_and_a_classifier_is_ignored(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model(VIT, num_classes=5, **TINY).eval()
    torch.save({"model": source.state_dict()}, tmp_path / "vit.pth")
    model = PlainViT(VIT, options=TINY, weights=str(tmp_path / "vit.pth"), window_size=0, final_norm=True).eval()
    image = random_image(1, 3, 224, 224)
    with torch.no_grad():
        expected = source.forward_features(image)[:, 1:]
        assert torch.allclose(model(image)["last_feat"].flatten(2).mT, expected, atol=1e-6)
    with pytest.raises(ValueError, match="blocks"):
        PlainViT(VIT, options={**TINY, "depth": 6}, weights=str(tmp_path / "vit.pth"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PlainViT(VIT, options=TINY, weights=str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", [VIT, DINOV2_REG, DINOV3, "vit_base_patch16_siglip_224"])
def test_gradients_reach_every_parameter(name, keep):
    model = tiny(name, dtype=torch.float32, window_size=2, global_blocks=[3], keep_prefix_tokens=keep).train()
    model(random_image(2, 3, 48, 80))["last_feat"].square().sum().backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_checkpointed_activations_give_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = tiny(window_size=2, activation_checkpointing=checkpointing, drop_path_rate=0.3).train()
        torch.manual_seed(7)
        model(random_image(2, 3, 48, 80, dtype=torch.float64))["last_feat"].square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_stochastic_depth_drops_a_branch_of_a_whole_image():
    model = tiny(window_size=2, depth=2, global_blocks=[], drop_path_rate=0.5)
    block = model.net.blocks[1]
    assert block.drop_path1.drop_prob == 0.5
    block.mlp.fc2.weight.data.zero_()
    block.mlp.fc2.bias.data.zero_()
    tokens = random_image(16, 1 + 12, 32, dtype=torch.float64)
    torch.manual_seed(0)
    with torch.no_grad():
        unchanged = (model.train()._run_block(1, tokens, None, (3, 4)) == tokens).all(dim=2)
    dropped = unchanged.all(dim=1)
    assert 0 < dropped.sum() < 16
    assert not unchanged[~dropped].any()
