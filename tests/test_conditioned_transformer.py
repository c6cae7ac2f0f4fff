"""ConditionedTransformer: diffusers' discrete transformer as oracle, its conditions, masks and grids."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import Transformer2DModel
from torch import nn

from hf_vq.networks.conditioned_layers import MLP, AdaptiveLayerNorm
from hf_vq.networks.conditioned_transformer import ConditionedTransformer
from hf_vq.networks.grid_embedding import GridEmbedding
from hf_vq.networks.transformer import attend

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
THEIR_ACTIVATIONS = {
    "gelu": "gelu", "gelu_tanh": "gelu-approximate", "quick_gelu": "geglu-approximate", "geglu": "geglu"
}  # fmt: skip


def shaken(module):
    """The module in evaluation mode, no parameter of it at zero or one."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def make_transformer(**options):
    torch.manual_seed(0)
    options = {"num_timesteps": 5, "num_classes": 3, "cross_attention_dim": 10, **options}
    return shaken(ConditionedTransformer(2, 12, 3, **options))


def inputs(batch_size=2, grid=(2, 3), length=4):
    return {
        "hidden": torch.randn(batch_size, grid[0] * grid[1], 12),
        "grid": grid,
        "timesteps": torch.arange(batch_size) % 5,
        "class_labels": torch.arange(batch_size) % 3,
        "encoder_hidden_states": torch.randn(batch_size, length, 10),
    }


def copy_attention(ours, theirs):
    for mine, parts in (
        (ours.query, [theirs.to_q]), (ours.key_value, [theirs.to_k, theirs.to_v]), (ours.output, [theirs.to_out[0]])
    ):  # fmt: skip
        mine.weight.copy_(torch.cat([part.weight for part in parts]))
        if mine.bias is not None:
            mine.bias.copy_(torch.cat([part.bias for part in parts]))


@torch.no_grad()
def copy_weights(transformer, embedding, stock):
    theirs = stock.latent_image_embedding
    tables = [embedding.codes, *embedding.places]
    pairs = list(zip(tables, [theirs.emb, theirs.height_emb, theirs.width_emb], strict=True))
    for ours, theirs in zip(transformer.blocks, stock.transformer_blocks, strict=True):
        norms = [(ours.norm, theirs.norm1)]
        copy_attention(ours.attention, theirs.attn1)
        if theirs.attn2 is not None:
            copy_attention(ours.cross_attention, theirs.attn2)
            norms.append((ours.cross_norm, theirs.norm2))
        for mine, other in norms:
            pairs += [(mine.embedding, other.emb), (mine.linear, other.linear)]
        pairs += [(ours.mlp_norm, theirs.norm3), (ours.mlp.expand, theirs.ff.net[0].proj)]
        pairs.append((ours.mlp.contract, theirs.ff.net[2]))
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())


@pytest.mark.parametrize("activation", THEIR_ACTIVATIONS)
@torch.no_grad()
def test_it_is_diffusers_discrete_transformer(activation):
    torch.manual_seed(0)
    codes, text = torch.randint(8, (2, 3, 3)), torch.randn(2, 4, 10)
    bias, cross = activation != "gelu", activation != "gelu_tanh"
    stock = shaken(
        Transformer2DModel(
            num_attention_heads=3, attention_head_dim=4, num_layers=2, cross_attention_dim=10 if cross else None,
            attention_bias=bias, sample_size=3, num_vector_embeds=8, num_embeds_ada_norm=5, norm_type="ada_norm",
            activation_fn=THEIR_ACTIVATIONS[activation],
        )
    )  # fmt: skip
    options = {"num_timesteps": 5, "cross_attention_dim": 10 * cross, "attention_bias": bias, "activation": activation}
    ours, embedding = ConditionedTransformer(2, 12, 3, **options), GridEmbedding(8, 12, (3, 3))
    copy_weights(ours, embedding, stock)
    text = text if cross else None
    expected = stock(codes.flatten(1), text, timestep=torch.tensor(3)).sample
    hidden = ours(embedding(codes), (3, 3), torch.tensor([3, 3]), encoder_hidden_states=text)
    logits = stock.out(stock.norm_out(hidden)).transpose(1, 2)
    torch.testing.assert_close(logits.double().log_softmax(1).float(), expected, **CLOSE)


@pytest.mark.parametrize("masked", [False, True])
def test_eager_equals_sdpa(masked):
    transformer, given = make_transformer(), inputs()
    mask = torch.tensor([[True, True, False, True], [False] * 4]) if masked else None  # the second has no text at all
    found = []
    for implementation in ("sdpa", "eager"):
        given["encoder_hidden_states"].grad = None
        given["encoder_hidden_states"].requires_grad_()
        output = transformer(**given, encoder_attention_mask=mask, implementation=implementation)
        output.square().sum().backward()
        found.append((output, given["encoder_hidden_states"].grad))
    torch.testing.assert_close(*found, **CLOSE)
    assert all(part.isfinite().all() for part in found[0])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_a_masked_position_of_the_text_has_no_influence(implementation):
    transformer, given = make_transformer(), inputs(length=5)
    mask = torch.tensor([[True, True, True, False, False], [True, False, True, True, True]])
    whole = transformer(**given, encoder_attention_mask=mask, implementation=implementation)
    for item, real in enumerate(mask):
        alone = {name: one if name == "grid" else one[item : item + 1] for name, one in given.items()}
        alone["encoder_hidden_states"] = alone["encoder_hidden_states"][:, real]
        torch.testing.assert_close(transformer(**alone, implementation=implementation)[0], whole[item], **CLOSE)


@torch.no_grad()
def test_all_positions_see_each_other_and_only_causal_attention_looks_back():
    given = inputs()
    changed = {**given, "hidden": given["hidden"].index_add(1, torch.tensor([4]), torch.ones(2, 1, 12))}
    transformer = make_transformer()
    assert (transformer(**given) != transformer(**changed)).any(-1).all()
    queries, keys, values = torch.randn(3, 2, 3, 5, 4)
    seen = [attend(queries, keys, values, "eager"), attend(queries, keys, values, "sdpa")]
    last = attend(queries[:, :, 2:3], keys[:, :, :3], values[:, :, :3], "sdpa", causal=False)
    torch.testing.assert_close(*seen)
    torch.testing.assert_close(seen[0][:, :, 2:3], last)


@pytest.mark.parametrize("activation", ["quick_gelu", "geglu"])
@torch.no_grad()
def test_a_conv_mlp_reads_the_neighbours_in_the_grid(activation):
    torch.manual_seed(0)
    mlp, hidden = shaken(MLP(4, 6, "conv", activation)), torch.randn(2, 15, 4)
    image = F.pad(hidden.transpose(1, 2).view(2, 4, 3, 5), (1, 1, 1, 1))
    patches = torch.stack([image[:, :, r : r + 3, c : c + 5] for r in range(3) for c in range(3)], dim=2)
    inner = torch.einsum("biphw,oip->bohw", patches, mlp.expand.weight.flatten(2)) + mlp.expand.bias[:, None, None]
    if activation == "geglu":
        inner = inner[:, :6] * F.gelu(inner[:, 6:])
    else:
        inner = inner * torch.sigmoid(1.702 * inner)
    expected = F.conv2d(inner, mlp.contract.weight, mlp.contract.bias, padding=1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(mlp(hidden, (3, 5)), expected, **CLOSE)


@torch.no_grad()
def test_sinusoidal_timesteps_modulate_a_plain_norm():
    norm, hidden, timesteps = shaken(AdaptiveLayerNorm(8, 20, "sinusoidal")), torch.randn(3, 6, 8), [0, 7, 19]
    times = 4000 * torch.tensor(timesteps, dtype=torch.float64) / 20
    angles = torch.stack([times / 10_000 ** (index / 3) for index in range(4)], dim=1)
    features = F.silu(torch.cat([angles.sin(), angles.cos()], dim=1).float())
    scale, shift = (features @ norm.linear.weight.T + norm.linear.bias).split(8, dim=1)
    expected = nn.LayerNorm(8)(hidden) * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(norm(hidden, torch.tensor(timesteps)), expected, atol=1e-4, rtol=1e-4)
    assert set(norm.state_dict()) == {"linear.weight", "linear.bias"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mlp": "conv", "activation": "geglu", "timestep_embedding": "sinusoidal"},
        {"num_timesteps": 0, "num_classes": 0, "cross_attention_dim": 0, "intermediate_size": 7},
    ],
)
def test_every_parameter_learns(options):
    transformer, given = make_transformer(**options).train(), inputs(batch_size=5)
    sizes = {
        "timesteps": "num_timesteps",
        "class_labels": "num_classes",
        "encoder_hidden_states": "cross_attention_dim",
    }
    given = {name: one for name, one in given.items() if name not in sizes or getattr(transformer, sizes[name])}
    transformer(**given).square().sum().backward()
    assert [name for name, one in transformer.named_parameters() if not one.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("per_axis", [True, False])
def test_places_of_a_smaller_grid_are_those_of_its_corner_or_the_first(per_axis):
    embedding = GridEmbedding(9, 6, (2, 4, 3), per_axis)
    codes = torch.randint(9, (2, 2, 3, 2))
    hidden = embedding(codes)
    tables = [table.weight for table in embedding.places]
    for position, (a, b, c) in enumerate([(a, b, c) for a in range(2) for b in range(3) for c in range(2)]):
        place = tables[0][a] + tables[1][b] + tables[2][c] if per_axis else tables[0][position]
        torch.testing.assert_close(hidden[:, position], embedding.codes.weight[codes[:, a, b, c]] + place)
    hidden.sum().backward()
    assert all(table.weight.grad.abs().sum() > 0 for table in embedding.places)


def test_bad_arguments_are_named():
    for message, options in (
        ("hidden_size must be a multiple of num_heads=5, got 12", {"num_heads": 5}),
        ("activation must be one of .*got 'relu'", {"activation": "relu"}),
        ("mlp must be one of .*got 'attention'", {"mlp": "attention"}),
        ("timestep_embedding must be one of .*got 'fourier'", {"timestep_embedding": "fourier"}),
        ("hidden_size must be even .*got 3", {"hidden_size": 3, "timestep_embedding": "sinusoidal"}),
    ):
        with pytest.raises(ValueError, match=message):
            ConditionedTransformer(**{"num_layers": 1, "hidden_size": 12, "num_heads": 3, **options})
    for message, changes in (
        (r"hidden must have shape \('batch', 6, 12\) for the grid \(2, 3\), got", {"hidden": torch.randn(2, 5, 12)}),
        ("timesteps must be given", {"timesteps": None}),
        (r"timesteps must have shape \(2,\), got \(1,\)", {"timesteps": torch.tensor([1])}),
        ("class_labels must be given", {"class_labels": None}),
        ("encoder_hidden_states must be given", {"encoder_hidden_states": None}),
        (r"encoder_hidden_states must have shape \(2, 4, 10\)", {"encoder_hidden_states": torch.randn(2, 4, 9)}),
        (r"encoder_attention_mask must have shape \(2, 4\)", {"encoder_attention_mask": torch.ones(2, 3)}),
        ("implementation must be one of", {"implementation": "flash"}),
    ):
        with pytest.raises(ValueError, match=message):
            make_transformer()(**{**inputs(), **changes})
    with pytest.raises(ValueError, match="class_labels must be None"):
        make_transformer(num_classes=0)(**inputs())
    with pytest.raises(ValueError, match="grid must have two axes for mlp='conv'"):
        make_transformer(mlp="conv")(**{**inputs(), "grid": (6,)})
    with pytest.raises(ValueError, match=r"codes must be of a grid of up to \(2, 3\), got one of \(2, 4\)"):
        GridEmbedding(9, 6, (2, 3))(torch.zeros(1, 2, 4, dtype=torch.int64))
