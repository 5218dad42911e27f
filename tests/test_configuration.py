from pathlib import Path

import pytest

from demo_diffusion.train.configuration import parse_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_read_and_its_resolved_form_is_the_same(path, tmp_path):
    config = parse_config(["--config", str(path)])
    config.save(tmp_path / "resolved.yaml")
    assert parse_config(["--config", str(tmp_path / "resolved.yaml")]) == config


def test_command_line_overrides_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("optimization: {num_steps: 7, learning_rate: 1e-3, compile: true}\nmodel: {num_layers: 3}\n")
    config = parse_config(["--config", str(path), "--num_steps", "9", "--compile", "false"])
    assert config.optimization.num_steps == 9 and config.optimization.learning_rate == 1e-3
    assert config.optimization.compile is False
    assert config.model.overrides() == {"num_layers": 3}


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("optimizer: {lr: 1}", [], "section 'optimizer'; the sections are model, data"),
        ("optimization: {lr: 1}", [], r"no field ['lr']"),
        ("", ["--lr", "1"], "Unknown option --lr 1"),
        ("", ["--num_step", "5"], "Unknown option --num_step 5"),
        ("optimization: {num_steps: many}", [], "invalid int value: 'many'"),
        ("optimization: {mixed_precision: fp8}", [], "invalid choice: 'fp8'"),
        ("optimization: {num_steps: 0}", [], "num_steps is 0; it must be positive"),
        ("", ["--ema_decay", "1.0"], r"ema_decay is 1.0; it must be in [0, 1)"),
        ("", ["--label_dropout", "-0.1"], "label_dropout is -0.1"),
        ("", ["--warmup_steps", "5"], "'constant' has no warm-up"),
    ],
)
def test_mistakes_are_named(text, arguments, message, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        parse_config(["--config", str(path), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_file_is_named(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--config", "nowhere.yaml"])
    assert "There is no config file nowhere.yaml" in capsys.readouterr().err
