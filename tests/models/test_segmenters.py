"""Segmenters: the paper's sizes, definitions written out slowly, training, export, sliding window."""

import io
import math

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from demo_diffusion.flops import count_macs
from demo_diffusion.models import MobileBlock, create_emov2
from demo_diffusion.models.segmentation import (
    EMOv2ForSemanticSegmentation,
    UEMOConfig,
    UEMOForSemanticSegmentation,
    create_segmenter,
    predict_logits,
)
from demo_diffusion.models.segmentation.losses import segmentation_loss
from tests.support.segmenters import HEADS, random_labels, small_segmenter, small_unet, with_statistics

# (head, backbone): parameters without and with the auxiliary head, GMACs at 512² in three digits; the published tables
# truncate. EMOv1's published FLOPs leave the attention products out (2.4, 3.5 …), so ours stand here.
SIZES = {
    ("deeplabv3", "EMOv2-1M"): (5_606_546, 5_829_928, 3.344),
    ("deeplabv3", "EMOv2-2M"): (6_658_454, 6_973_996, 5.015),
    ("deeplabv3", "EMOv2-5M"): (9_965_718, 10_373_420, 9.117),
    ("deeplabv3", "EMOv2-20M"): (26_062_006, 26_838_348, 31.63),
    ("pspnet", "EMOv2-1M"): (4_278_930, 4_502_312, 2.970),
    ("pspnet", "EMOv2-2M"): (5_248_918, 5_564_460, 4.617),
    ("pspnet", "EMOv2-5M"): (8_195_734, 8_603_436, 8.610),
    ("pspnet", "EMOv2-20M"): (23_636_662, 24_413_004, 30.93),
    ("fpn", "EMOv2-1M"): (5_371_026, 5_371_026, 23.398),
    ("fpn", "EMOv2-2M"): (6_289_814, 6_289_814, 25.045),
    ("fpn", "EMOv2-5M"): (8_986_774, 8_986_774, 29.094),
    ("fpn", "EMOv2-20M"): (23_995_574, 23_995_574, 51.49),
    ("segformer", "EMOv2-1M"): (1_499_234, 1_499_234, 4.980),
    ("segformer", "EMOv2-2M"): (2_676_118, 2_676_118, 10.306),
    ("segformer", "EMOv2-5M"): (5_378_454, 5_378_454, 14.368),
    ("segformer", "EMOv2-20M"): (20_399_798, 20_399_798, 36.79),
    ("deeplabv3", "EMOv1-1M"): (None, 5_653_188, 2.708),
    ("deeplabv3", "EMOv1-2M"): (None, 6_967_156, 3.876),
    ("deeplabv3", "EMOv1-5M"): (None, 10_355_828, 6.611),
    ("pspnet", "EMOv1-1M"): (None, 4_374_724, 2.350),
    ("pspnet", "EMOv1-2M"): (None, 5_557_620, 3.478),
    ("pspnet", "EMOv1-5M"): (None, 8_585_844, 6.105),
    ("fpn", "EMOv1-1M"): (None, 5_280_302, 22.79),
    ("fpn", "EMOv1-2M"): (None, 6_282_974, 23.91),
    ("fpn", "EMOv1-5M"): (None, 8_969_182, 26.59),
}
# Tables XI and XII, EMOv2: GFLOPs as printed, with what the resizes inside the head add in the authors' counter.
PRINTED = {
    "deeplabv3": ((3.3, 5.0, 9.1, 31.6), 0.0),
    "pspnet": ((2.9, 4.6, 8.6, 30.9), 0.0),
    "fpn": ((23.4, 25.1, 29.1, 51.5), 0.061),
    "segformer": ((5.0, 10.3, 14.4, 36.8), 0.04),
}
HEAD_SIZES = {
    "deeplabv3": (4_327_062, 4_475_542, 5_128_854, 6_316_694),
    "pspnet": (2_999_446, 3_066_006, 3_358_870, 3_891_350),
}
EMOV2 = ("EMOv2-1M", "EMOv2-2M", "EMOv2-5M", "EMOv2-20M")


def count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("head", "backbone"), SIZES)
def test_segmenters_have_the_papers_sizes(head, backbone):
    without, total, macs = SIZES[head, backbone]
    with torch.device("meta"):
        model = create_segmenter(head, backbone)
        counted = count_macs(model, torch.empty(1, 3, 512, 512)) / 1e9
    assert count(model) == total
    assert without is None or count(model) - count(model.auxiliary_head) == without
    digits = len(str(macs).partition(".")[2].ljust(2, "0"))
    assert abs(counted - macs) <= 0.51 * 10**-digits + (0.005 if macs > 20 else 0)
    if backbone in EMOV2:
        number = EMOV2.index(backbone)
        if head in HEAD_SIZES:
            assert count(model.decode_head) == HEAD_SIZES[head][number]
        printed, resizes = PRINTED[head]
        assert math.floor(10 * (counted + resizes)) / 10 == printed[number]


@pytest.mark.parametrize(
    ("block", "window", "trunk", "total", "macs"),
    [
        ("i2rmb", 8, 21_281_728, 21_397_156, 228.42),
        ("i2rmb", 7, 21_281_728, 21_397_156, 229.09),
        ("i2rmb", 10, 21_281_728, 21_397_156, 268.22),
        ("conv", 8, None, 29_064_996, 203.56),
    ],
)
def test_unets_have_the_papers_sizes(block, window, trunk, total, macs):
    with torch.device("meta"):
        config = UEMOConfig(block=block, window_size=window, num_labels=2, auxiliary=True)
        model = UEMOForSemanticSegmentation(config)
        counted = count_macs(model, torch.empty(1, 3, 512, 512)) / 1e9
    assert count(model) == total and count(model.decode_head) == 41_442 and count(model.auxiliary_head) == 73_986
    assert trunk is None or count(model.unet) == trunk
    assert round(counted, 2) == macs


def slow_norm(x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def slow_windows(query, key, value, heads, size, remote):
    """Attention among the tokens of one window, in loops; remote windows hold every (side / size)-th token."""
    side = query.shape[1]
    step = side // size
    output = torch.zeros_like(value)
    for row in range(step):
        for column in range(step):
            if remote:
                area = np.s_[:, row::step, column::step]
            else:
                area = np.s_[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
            q, k, v = (x[area].reshape(len(x), size * size, heads, -1) for x in (query, key, value))
            weights = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
            mixed = torch.einsum("bhqk,bkhd->bqhd", weights.softmax(-1), v)
            output[area] = mixed.reshape(output[area].shape)
    return output


@pytest.mark.parametrize(("width_in", "width"), [(16, 8), (16, 16), (8, 24)])
def test_the_block_of_uemo_is_its_definition(width_in, width):
    torch.manual_seed(0)
    block = MobileBlock(
        width_in, width, layer_scale_init=0.3, expansion_ratio=2, num_heads=2, window_size=3, conv_layer_norm=True
    ).eval()
    x = torch.randn(2, 6, 6, width_in)
    normed = slow_norm(x, block.norm)
    query, key = (normed @ block.mixer.qk.weight.T + block.mixer.qk.bias).chunk(2, -1)
    value = F.gelu(normed @ block.mixer.v.weight.T + block.mixer.v.bias)
    near, far = (slow_windows(query, key, value, 2, 3, remote) for remote in (False, True))
    z = near + far
    padded = F.pad(z, (0, 0, 2, 2, 2, 2))
    kernel = block.mixer.conv_local.conv.weight[:, 0]
    convolved = sum(padded[:, i : i + 6, j : j + 6] * kernel[:, i, j] for i in range(5) for j in range(5))
    update = F.gelu(slow_norm(convolved, block.mixer.conv_local.norm))
    keeps = width_in == width
    expected = 0.3 * ((update + z if keeps else update) @ block.mixer.proj.weight.T) + (x if keeps else 0)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def conv_norm_relu(x: torch.Tensor, layer: nn.Module, dilation: int = 1) -> torch.Tensor:
    """ReLU(BatchNorm(convolution)) with zeros at the border, place by place."""
    conv = next(m for m in layer.modules() if isinstance(m, nn.Conv2d))
    norm = next(m for m in layer.modules() if isinstance(m, nn.BatchNorm2d))
    out = slow_conv(x, conv.weight, dilation)
    out = (out - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
    return (out * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)


def slow_conv(x: torch.Tensor, weight: torch.Tensor, dilation: int = 1) -> torch.Tensor:
    height, width = x.shape[-2:]
    reach = dilation * (weight.shape[-1] // 2)
    x = F.pad(x, (reach,) * 4)
    return sum(
        torch.einsum("bchw,oc->bohw", x[..., i * dilation :, j * dilation :][..., :height, :width], weight[:, :, i, j])
        for i in range(weight.shape[2])
        for j in range(weight.shape[3])
    )


def slow_resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    for axis, length in ((-2, size[0]), (-1, size[1])):
        side = x.shape[axis]
        place = ((torch.arange(length) + 0.5) * side / length - 0.5).clamp(0, side - 1)
        low = place.floor().long()
        high = (low + 1).clamp(max=side - 1)
        part = (place - low).to(x).reshape(-1, *[1] * (-1 - axis))
        x = x.index_select(axis, low) * (1 - part) + x.index_select(axis, high) * part
    return x


def slow_head(head: str, module: nn.Module, maps: list[torch.Tensor]) -> torch.Tensor:
    size, last = maps[0].shape[-2:], maps[-1]
    if head == "deeplabv3":
        pooled, first, *dilated = module.aspp.convs[-1], module.aspp.convs[0], *module.aspp.convs[1:-1]
        parts = [conv_norm_relu(last, first)]
        parts += [conv_norm_relu(last, layer, d) for layer, d in zip(dilated, (12, 24, 36), strict=True)]
        parts += [conv_norm_relu(last.mean((2, 3), keepdim=True), pooled).expand(-1, -1, *last.shape[-2:])]
        x = conv_norm_relu(torch.cat(parts, 1), module.aspp.project)
    elif head == "pspnet":
        parts = [last]
        for side, block in zip((1, 2, 3, 6), module.pools.blocks, strict=True):
            cells = [
                last[..., math.floor(i * h / side) : math.ceil((i + 1) * h / side), :][
                    ..., math.floor(j * w / side) : math.ceil((j + 1) * w / side)
                ].mean((2, 3))
                for h, w in [last.shape[-2:]]
                for i in range(side)
                for j in range(side)
            ]
            pooled = torch.stack(cells, -1).reshape(*last.shape[:2], side, side)
            parts.append(slow_resize(conv_norm_relu(pooled, block), last.shape[-2:]))
        x = conv_norm_relu(torch.cat(parts, 1), module.bottleneck)
    elif head == "segformer":
        parts = [slow_resize(conv_norm_relu(x, layer), size) for x, layer in zip(maps, module.projections, strict=True)]
        x = conv_norm_relu(torch.cat(parts, 1), module.fusion)
    else:
        inner, above = [], None
        for x, layer in reversed(list(zip(maps, module.pyramid.inner_blocks, strict=True))):
            x = slow_conv(x, layer[0].weight) + layer[0].bias[:, None, None]
            if above is not None:
                rows, columns = (torch.arange(s) * a // s for s, a in zip(x.shape[-2:], above.shape[-2:], strict=True))
                x = x + above[..., rows, :][..., columns]
            above = x
            inner.insert(0, x)
        total = 0
        for level, (x, out) in enumerate(zip(inner, module.pyramid.layer_blocks, strict=True)):
            x = slow_conv(x, out[0].weight) + out[0].bias[:, None, None]
            for number, layer in enumerate(module.levels[level]):
                x = conv_norm_relu(x, layer)
                if level:
                    x = slow_resize(x, maps[level - 1 - number].shape[-2:])
            total = total + x
        x = total
    conv = module.classifier
    return slow_conv(x, conv.weight) + conv.bias[:, None, None]


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_heads_are_their_definitions(head):
    model = with_statistics(small_segmenter(head)).double()
    maps = [
        torch.randn(2, width, *size, dtype=torch.float64)
        for width, size in zip((32, 48, 80, 180), ((56, 40), (28, 20), (14, 10), (7, 5)), strict=True)
    ]
    torch.testing.assert_close(model.decode_head(maps), slow_head(head, model.decode_head, maps))


@torch.no_grad()
def test_the_unet_is_its_definition():
    """The plain one, whose blocks are convolutions."""
    model = with_statistics(small_unet("conv")).double()
    x, unet = torch.randn(1, 3, 22, 17, dtype=torch.float64), model.unet

    def pair(x, layers):
        return conv_norm_relu(conv_norm_relu(x, layers[0]), layers[1])

    first = pair(x, unet.encoder[0])
    second = pair(F.max_pool2d(first, 2), unet.encoder[1])
    third = pair(F.max_pool2d(second, 2), unet.encoder[2])
    for level, skip in ((unet.decoder[1], second), (unet.decoder[0], first)):
        above = conv_norm_relu(slow_resize(third, skip.shape[-2:]), level.narrow)
        third = pair(torch.cat([skip, above], 1), level.pair)
    torch.testing.assert_close(
        model(x).logits, slow_head("deeplabv3", model.decode_head, [third]), atol=1e-5, rtol=1e-5
    )


def test_the_loss_divides_by_all_pixels_and_adds_the_auxiliary_heads():
    logits = torch.tensor([[[[2.0, 0.0]], [[0.0, 0.0]]]])
    labels = torch.tensor([[[0, 255]]])
    assert segmentation_loss(logits, labels, 255).item() == pytest.approx(math.log(1 + math.exp(-2)) / 2)
    model = small_segmenter("pspnet", drop_path_rate=0.0)
    model.config.head_dropout = 0
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    pixels, labels = torch.randn(2, 3, 64, 64), random_labels(2, 64, 64)
    model.train()
    out = model(pixels, labels)
    maps = model.backbone(pixels).feature_maps
    auxiliary = segmentation_loss(model.auxiliary_head(maps[2]), labels, 255)
    torch.testing.assert_close(out.loss, segmentation_loss(out.logits, labels, 255) + 0.4 * auxiliary)
    model.eval()
    out = model(pixels, labels)
    torch.testing.assert_close(out.loss, segmentation_loss(out.logits, labels, 255))


@pytest.mark.parametrize("block", ["i2rmb", "conv"])
def test_a_new_unet_gives_each_class_the_same_chance(block):
    model = small_unet(block, auxiliary=True, layer_scale_init_value=1.0).train()
    loss = model(torch.randn(2, 3, 32, 32), torch.randint(5, (2, 32, 32))).loss
    assert loss.item() == pytest.approx(1.4 * math.log(5), rel=0.02)


def every_segmenter(**options):
    for backbone in ("EMOv2-1M", "EMOv1-1M"):
        for head in HEADS:
            yield pytest.param(lambda h=head, b=backbone: small_segmenter(h, b, **options), id=f"{head}-{backbone}")
    for block in ("i2rmb", "conv"):
        yield pytest.param(lambda b=block: small_unet(b, auxiliary=True), id=block)


ALL = pytest.mark.parametrize("create", list(every_segmenter()))


@ALL
def test_a_training_step_and_inference_on_odd_sizes(create, tmp_path):
    torch.manual_seed(0)
    model = create().train()
    pixels, labels = torch.randn(2, 3, 75, 97), random_labels(2, 75, 97)
    loss = model(pixels, labels).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # Inference in float32 and bfloat16, and after saving and loading.
    model.eval()
    with torch.no_grad():
        logits = predict_logits(model, pixels[:, :, :61, :83])
        assert logits.shape == (2, 5, 61, 83)
        with torch.autocast("cpu", torch.bfloat16):
            half = predict_logits(model, pixels[:, :, :61, :83])
        assert half.dtype == torch.float32 and (half - logits).abs().max() < 0.1 * logits.abs().max()
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
        assert type(loaded) is type(model) and type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
        assert torch.equal(predict_logits(loaded, pixels[:, :, :61, :83]), logits)
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("create", list(every_segmenter(depths=(1, 1, 2, 1))))
@torch.no_grad()
def test_exported_programs_and_onnx_give_the_same(create):
    model, pixels = with_statistics(create()), torch.randn(2, 3, 32, 64)
    expected = model(pixels).logits
    program = torch.export.export(model, (), {"pixel_values": pixels})
    torch.testing.assert_close(program.module()(pixel_values=pixels).logits, expected, rtol=1e-4, atol=1e-4)
    file = io.BytesIO()
    torch.onnx.export(program, (), file, output_names=["logits"], verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixel_values": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-3)


class Local(nn.Module):
    """A segmenter that sees one pixel to each side."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, pixel_values):
        return type("Output", (), {"logits": self.conv(pixel_values)})


@pytest.mark.parametrize(("height", "width", "window", "stride"), [(40, 57, 16, 9), (16, 33, 16, 16), (9, 50, 16, 4)])
@torch.no_grad()
def test_a_sliding_window_gives_what_the_whole_image_gives(height, width, window, stride):
    """But for places at the border of a window, where it sees zeros."""
    network, pixels = Local(), torch.randn(2, 3, height, width)
    whole, slid = predict_logits(network, pixels), predict_logits(network, pixels, window, stride)
    starts = [sorted({*range(0, max(0, side - window), stride), max(0, side - window)}) for side in (height, width)]
    inside = torch.ones(height, width, dtype=torch.bool)
    for axis, (of_axis, side) in enumerate(zip(starts, (height, width), strict=True)):
        for start in of_axis:
            for place in (start, start + window - 1):
                if 0 < place < side - 1:
                    inside.select(axis, place).fill_(False)
    assert inside.any() and not inside.all()
    torch.testing.assert_close(slid[..., inside], whole[..., inside])
    assert not torch.allclose(slid, whole)


@torch.no_grad()
def test_one_window_is_the_whole_image_and_overlaps_are_means():
    model, pixels = with_statistics(small_unet()), torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(predict_logits(model, pixels, 48, 20), predict_logits(model, pixels))
    wide = torch.randn(1, 3, 48, 60)
    slid = predict_logits(model, wide, 48, 12)
    left, right = model(wide[..., :48]).logits, model(wide[..., 12:]).logits
    expected = torch.cat([left[..., :12], (left[..., 12:] + right[..., :36]) / 2, right[..., 36:]], -1)
    torch.testing.assert_close(slid, expected)
    with pytest.raises(ValueError, match=r"stride is 49; it must be from 1 to the window of 48"):
        predict_logits(model, wide, 48, 49)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create_segmenter("unet"), "Unknown head 'unet'; known are deeplabv3, pspnet, fpn, segformer"),
        (lambda: create_segmenter("fpn", "ResNet"), "Unknown backbone 'ResNet'; known are EMOv2-1M"),
        (lambda: create_segmenter("fpn", num_labels=0), "num_labels is 0; it must be a whole number"),
        (lambda: UEMOConfig(block="resnet"), "Unknown block 'resnet'"),
        (lambda: UEMOConfig(hidden_sizes=(60, 128)), "attention_head_dim is 32; it must divide"),
        (lambda: small_unet()(torch.zeros(1, 3, 3, 40)), "sides of at least 4 pixels"),
        (lambda: small_unet()(torch.zeros(1, 1, 40, 40)), r"must be \(batch, 3, height, width\)"),
        (lambda: small_unet()(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 9).long()), r"it must be \(1, 8, 8\)"),
        (lambda: small_unet()(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8)), "it must hold whole numbers"),
        (lambda: small_unet()(torch.zeros(1, 3, 8, 8), torch.full((1, 8, 8), 7)), "labels has class 7; .* 0 to 4"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_segmenter_starts_from_a_classifier(tmp_path):
    classifier = create_emov2("EMOv2-1M", num_labels=3)
    for value in classifier.buffers():
        value += 1  # as if trained
    classifier.save_pretrained(tmp_path)
    model = create_segmenter("segformer", "EMOv2-1M", backbone_weights=tmp_path)
    theirs = classifier.emov2.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.backbone.state_dict().items())
    with pytest.raises(ValueError, match="another network than this backbone: hidden_sizes"):
        create_segmenter("segformer", "EMOv2-2M", backbone_weights=tmp_path)
    assert isinstance(model, EMOv2ForSemanticSegmentation)
    with pytest.raises(ValueError, match="another network than this backbone: attend_before_value"):
        create_segmenter("segformer", "EMOv2-1M", backbone_weights=tmp_path, attend_before_value=True)
