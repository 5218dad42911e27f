"""EMOv2 as the backbone of transformers' segmenters and detectors: one training step each."""

import torch
from transformers import (
    AutoBackbone,
    RTDetrConfig,
    RTDetrForObjectDetection,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from demo_diffusion import EMOv2Backbone, EMOv2Config
from tests.support.classifiers import TINY


def tiny_backbone_config(*out_features: str) -> EMOv2Config:
    return EMOv2Config(**TINY, out_features=list(out_features))


def assert_trains(model: torch.nn.Module, step) -> None:
    """One optimizer step moves every weight of the backbone that takes part, all of them from a finite loss."""
    backbone = next(m for m in model.modules() if isinstance(m, EMOv2Backbone))
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = step().loss
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert all(not torch.equal(p, before[name]) for name, p in backbone.named_parameters())


def test_auto_backbone_is_ours():
    config = tiny_backbone_config("stage1", "stage3")
    backbone = AutoBackbone.from_config(config).eval()
    assert isinstance(backbone, EMOv2Backbone) and backbone.channels == [8, 16]
    assert [x.shape[1] for x in backbone(torch.randn(1, 3, 32, 32)).feature_maps] == [8, 16]


def test_segmenter_trains():
    config = UperNetConfig(
        backbone_config=tiny_backbone_config("stage1", "stage2", "stage3", "stage4"),
        hidden_size=16,
        num_labels=4,
        auxiliary_in_channels=16,
        auxiliary_channels=8,
        pool_scales=[1, 2],
    )
    model = UperNetForSemanticSegmentation(config).train()
    pixels, labels = torch.randn(2, 3, 64, 96), torch.randint(0, 4, (2, 64, 96))
    assert_trains(model, lambda: model(pixels, labels=labels))
    assert model(pixels).logits.shape == (2, 4, 64, 96)


def test_detector_trains():
    config = RTDetrConfig(
        backbone_config=tiny_backbone_config("stage2", "stage3", "stage4"),
        encoder_hidden_dim=16,
        encoder_in_channels=[12, 16, 24],
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        d_model=16,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        decoder_layers=1,
        num_queries=8,
        num_denoising=0,
        num_labels=3,
        freeze_backbone_batch_norms=False,
    )
    model = RTDetrForObjectDetection(config).train()
    pixels = torch.randn(2, 3, 64, 64)
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.4]])} for _ in range(2)]
    assert_trains(model, lambda: model(pixels, labels=labels))
    assert model(pixels).pred_boxes.shape == (2, 8, 4)
