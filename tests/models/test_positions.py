"""Rotary positions, positions inside windows and QK normalisation, against the formulas written out."""

import itertools
import math

import pytest
import torch

from demo_diffusion.models import MobileMixer, spanning_attention
from demo_diffusion.models.layers.positions import rotary_table, rotate
from demo_diffusion.models.layers.window_positions import WINDOW_POSITIONS
from tests.support.networks import inputs_for, randomize, tiny_dit, tiny_transformer

HEADS, HEAD_DIM, WINDOW = 2, 8, 2


def rotated(vector: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """One head's vector (d,): pairs of channels turned by row (first half) and column (second half)."""
    result, quarter = vector.clone(), len(vector) // 4
    for pair in range(len(vector) // 2):
        position = row if pair < quarter else column
        angle = position * 10_000 ** (-(pair % quarter) / quarter)
        a, b = vector[2 * pair], vector[2 * pair + 1]
        result[2 * pair] = a * math.cos(angle) - b * math.sin(angle)
        result[2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
    return result


def test_rotation_equals_its_formula():
    x, table = torch.randn(1, HEADS, 15, HEAD_DIM), rotary_table(HEAD_DIM, 3, 5)
    expected = x.clone()
    for (row, column), head in itertools.product(itertools.product(range(3), range(5)), range(HEADS)):
        expected[0, head, row * 5 + column] = rotated(x[0, head, row * 5 + column], row, column)
    torch.testing.assert_close(rotate(x, table, sequence_dim=2), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(rotate(x.transpose(1, 2), table, sequence_dim=1).transpose(1, 2), expected)


def test_rotated_products_depend_on_the_offset_alone():
    query, key = torch.randn(2, 1, 1, 1, HEAD_DIM).expand(2, 1, 1, 30, HEAD_DIM)
    table = rotary_table(HEAD_DIM, 5, 6)
    products = rotate(query, table, 2)[0, 0] @ rotate(key, table, 2)[0, 0].T
    products = products.view(5, 6, 5, 6)
    torch.testing.assert_close(products[0, 1, 2, 4], products[2, 2, 4, 5], atol=1e-5, rtol=1e-5)
    assert abs(products[0, 1, 2, 4] - products[2, 2, 4, 4]) > 1e-3


def window_of(kind: str, i: int, j: int, grid: int) -> tuple[tuple[int, int], int]:
    """A token's window and its position in it, row by row."""
    n = grid // WINDOW
    if kind == "neighborhood":
        return (i // WINDOW, j // WINDOW), i % WINDOW * WINDOW + j % WINDOW
    return (i % n, j % n), i // n * WINDOW + j // n


def plain_attention(query, key, value, window_position, name):
    """Token by token: softmax over the tokens of its window, for both kinds, with the position written out."""
    grid, output = query.shape[1], torch.zeros_like(value)
    tokens = list(itertools.product(range(grid), range(grid)))
    for kind, (i, j), head in itertools.product(("neighborhood", "remote"), tokens, range(HEADS)):
        window, place = window_of(kind, i, j, grid)
        others = [(a, b) for a, b in tokens if window_of(kind, a, b, grid)[0] == window]

        def placed(x, position, head=head):
            if name == "embedding":
                return x + window_position.weight[head, position]
            return rotated(x, position // WINDOW, position % WINDOW) if name == "rotary" else x

        span = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        logits = []
        for a, b in others:
            at = window_of(kind, a, b, grid)[1]
            logit = placed(query[0, i, j, span], place) @ placed(key[0, a, b, span], at) / HEAD_DIM**0.5
            logits.append(logit + (window_position.weight[head, place, at] if name == "bias" else 0))
        weights = torch.stack(logits).softmax(0)
        values = torch.stack([value[0, a, b].view(HEADS, -1)[head] for a, b in others])
        output[0, i, j].view(HEADS, -1)[head] += weights @ values
    return output


@pytest.mark.parametrize("name", WINDOW_POSITIONS)
@torch.no_grad()
def test_window_positions_equal_a_plain_attention(name):
    window_position = randomize_weight(WINDOW_POSITIONS[name](HEADS, HEAD_DIM, WINDOW))
    query, key = torch.randn(2, 1, 4, 4, HEADS * HEAD_DIM)
    value = torch.randn(1, 4, 4, HEADS * 3)
    output = spanning_attention(query, key, value, HEADS, WINDOW, "spanning", window_position)
    expected = plain_attention(query, key, value, window_position, name)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    without = spanning_attention(query, key, value, HEADS, WINDOW, "spanning")
    assert (without - output).abs().max() > 1e-2


def randomize_weight(module):
    for parameter in module.parameters():
        parameter.normal_()
    return module


@pytest.mark.parametrize(("name", "parameters"), [("embedding", 64 * 768), ("bias", 12 * 64 * 64), ("rotary", 0)])
def test_window_positions_cost_what_the_log_of_demo_b_says(name, parameters):
    """The abandoned run in the authors' log of B has 64 · D more parameters a block."""
    with torch.device("meta"):
        plain, placed = (MobileMixer(768, 768, num_heads=12, window_position=each) for each in (None, name))
    sizes = [sum(p.numel() for p in mixer.parameters()) for mixer in (plain, placed)]
    assert sizes[1] - sizes[0] == parameters


@pytest.mark.parametrize("name", ["embedding", "bias"])
@torch.no_grad()
def test_learned_positions_start_without_effect(name):
    plain = tiny_transformer()
    placed = tiny_transformer(window_position=name)
    missing = placed.load_state_dict(plain.state_dict(), strict=False).missing_keys
    for key in missing:
        placed.get_parameter(key).zero_()
    assert len(missing) == len(placed.transformer_blocks)
    inputs = inputs_for(plain)
    torch.testing.assert_close(placed(*inputs).sample, plain(*inputs).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rotary_in_windows_is_the_grid_s_own_in_neighborhood_windows():
    """Both turn by differences of positions, and in a contiguous window those are the same."""
    in_window = tiny_transformer(window_position="rotary", attention_mode="neighborhood")
    in_grid = tiny_transformer(rotary_positions=True, attention_mode="neighborhood")
    in_grid.load_state_dict(in_window.state_dict())
    inputs = inputs_for(in_window)
    expected = in_window(*inputs).sample
    torch.testing.assert_close(in_grid(*inputs).sample, expected, atol=1e-5, rtol=1e-5)
    plain = tiny_transformer(attention_mode="neighborhood")
    plain.load_state_dict(in_window.state_dict())
    assert (plain(*inputs).sample - expected).abs().max() > 1e-3


@pytest.mark.parametrize("window_position", [None, "bias"])
@torch.no_grad()
def test_rotary_positions_on_a_padded_grid(window_position):
    model = tiny_transformer(sample_size=10, window_size=4, rotary_positions=True, window_position=window_position)
    assert model.rotary.shape == (2, 8 * 8, 8)
    assert model(*inputs_for(model)).sample.isfinite().all()


@pytest.mark.parametrize("tiny", [tiny_transformer, tiny_dit])
@torch.no_grad()
def test_qk_norm_makes_the_output_independent_of_the_scale_of_queries_and_keys(tiny):
    def scale_queries_and_keys(model):
        for block in model.transformer_blocks:
            layer = block.mixer.qk if hasattr(block, "mixer") else block.attention.qkv
            rows = slice(None) if hasattr(block, "mixer") else slice(0, 2 * layer.in_features)
            layer.weight[rows] *= 8
            layer.bias[rows] *= 8

    for qk_norm in (True, False):
        model = randomize(tiny(qk_norm=qk_norm))
        inputs = inputs_for(model)
        before = model(*inputs).sample
        scale_queries_and_keys(model)
        difference = (model(*inputs).sample - before).abs().max()
        assert difference < 1e-4 if qk_norm else difference > 1e-2
