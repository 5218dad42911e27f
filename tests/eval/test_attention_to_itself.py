import re
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from demo_diffusion import DEMOPipeline
from demo_diffusion.eval.studies import attention_to_itself
from tests.support.networks import inputs_for, tiny_transformer

WINDOW_TOKENS = 2 * 2


def test_equal_attention_gives_equal_weights():
    model = tiny_transformer()
    for block in model.transformer_blocks:
        torch.nn.init.zeros_(block.mixer.qk.weight)
        torch.nn.init.zeros_(block.mixer.qk.bias)
    shares = attention_to_itself.self_attention(model, *inputs_for(model))
    assert shares == [[1 / WINDOW_TOKENS] * 2] * model.config.num_layers


def test_a_token_that_attends_to_itself_alone():
    model = tiny_transformer()
    for block in model.transformer_blocks:
        block.mixer.qk.weight.data[16:] = block.mixer.qk.weight.data[:16].mul_(10)
        block.mixer.qk.bias.data.zero_()
    shares = attention_to_itself.self_attention(model, *inputs_for(model))
    assert all(1 / WINDOW_TOKENS < share <= 1 for block in shares for share in block)


def test_study_runs_as_a_command(tmp_path, capsys, monkeypatch):
    network = tiny_transformer(in_channels=1, out_channels=1, num_classes=10)
    DEMOPipeline(network, FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path)
    attention_to_itself.main([str(tmp_path), "--dataset", "digits"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line, t in zip(lines, (0.2, 0.8), strict=True):
        assert re.fullmatch(rf"{re.escape(str(tmp_path))}, t = {t}: \[\[0\.\d+, 0\.\d+\], \[0\.\d+, 0\.\d+\]\]", line)
    result = subprocess.run(
        [sys.executable, Path(attention_to_itself.__file__), "--help"], capture_output=True, text=True, check=True
    )
    assert "PIPELINE" in result.stdout
