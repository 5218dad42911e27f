import itertools
import json
import re
import shutil

import pytest
import torch

from demo_diffusion import kernels
from demo_diffusion.eval import benchmark
from demo_diffusion.eval.speed import roofline
from demo_diffusion.eval.speed.measurements import measure
from demo_diffusion.eval.speed.operator_profile import profile_operators
from demo_diffusion.eval.speed.report import Report
from demo_diffusion.eval.speed.roofline import Rates, Work, measure_rates
from demo_diffusion.eval.speed.timing import WARM_UP_ROUNDS, Clock, peak_bytes, ratio_to, time_in_turns
from demo_diffusion.eval.speed.workloads import CANDIDATES, Case, create_network, make_workload

CPU = torch.device("cpu")
TINY = {"sample_size": 16, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "num_classes": 10}
RATES = Rates(flops=1e10, eager_flops=1e10, bytes=1e9)
TABLE_LINE = re.compile(r"\| D-EMO \| [\d.]+ \| [\d.]+ \| [\d.]+–[\d.]+ \| [\d.]+ \| [\d.]+ \| [\d.]+ \| \d+% \|.*")


def tiny_case(part="block", mode="inference", precision="fp32", compiled=False, steps=1) -> Case:
    return Case(part, "S", mode, precision, compiled, 2, CPU, steps=steps, overrides=TINY)


def small_rates(monkeypatch):
    monkeypatch.setitem(roofline.PRODUCT_SIDE, "cpu", 64)
    monkeypatch.setitem(roofline.COPIED_BYTES, "cpu", 2**16)


@pytest.mark.parametrize(
    ("arguments", "num_rows"),
    [
        (["block"], 10),
        (["model", "--depth", "1", "--modes", "inference", "--precision", "fp32", "bf16"], 10),
        (["sampling", "--depth", "1", "--steps", "2", "--candidates", "demo"], 2),
        (["training", "--depth", "1", "--candidates", "demo"], 2),
    ],
)
def test_table_and_file(arguments, num_rows, tmp_path, capsys, monkeypatch):
    small_rates(monkeypatch)
    out = tmp_path / "speed.json"
    benchmark.main([*arguments, "--batch_size", "1", "--rounds", "2", "--device", "cpu", "--out", str(out)])
    report = json.loads(out.read_text())
    assert report["settings"]["command"] == arguments[0] and report["settings"]["rounds"] == 2
    assert report["machine"]["threads"] == 1 and report["machine"]["clock"] == "thread_time"
    assert report["kernels_enabled"] is kernels.is_enabled() and "torch" in report["packages"]
    assert len(report["rows"]) == num_rows
    for row in report["rows"]:
        assert row["part"] == arguments[0] and row["num_blocks"] == 1 and row["batch_size"] == 1
        assert len(row["seconds"]) == 2 and row["peak_bytes"] > 0 and row["flops"] > 0 and row["bytes"] > 0
        assert row["ratio"]["median"] == 1 or row["candidate"] != "dit"
        assert ("images_per_second" in row) == (arguments[0] in ("sampling", "training"))
        assert ("pipeline_overhead" in row) == (arguments[0] == "sampling")
    printed = capsys.readouterr().out.splitlines()
    assert "thread_time" in printed[0]
    assert TABLE_LINE.fullmatch(printed[-1])
    assert printed[-1].split("|")[3].strip() == f"{report['rows'][-1]['ratio']['median']:.3f}"


def test_networks_of_other_fields_are_compared(tmp_path, capsys, monkeypatch):
    small_rates(monkeypatch)
    out = tmp_path / "speed.json"
    arguments = [
        "model",
        "--override",
        "patch_size=4",
        "in_channels=3",
        "--depth",
        "2",
        "--modes",
        "inference",
        "--rounds",
        "1",
    ]
    benchmark.main([*arguments, "--batch_size", "1", "--candidates", "demo", "--device", "cpu", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert all(row["num_blocks"] == 2 and row["overrides"] == {"patch_size": 4, "in_channels": 3} for row in rows)
    assert "2 blocks, inference, fp32, patch_size 4, in_channels 3, eager" in capsys.readouterr().out


def test_profile_lays_operators_side_by_side(tmp_path, capsys, monkeypatch):
    small_rates(monkeypatch)
    out = tmp_path / "profile.json"
    arguments = ["profile", "--modes", "inference", "--batch_size", "1", "--top", "3", "--device", "cpu"]
    benchmark.main([*arguments, "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["candidate"] for row in rows] == ["dit", "demo"]
    for row in rows:
        assert sum(operator["share"] for operator in row["operators"]) == pytest.approx(1)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed[-1].split("|")) == 2 + 3 * len(rows)
    assert rows[1]["operators"][2]["operator"] in printed[-1]


def test_profile_counts_calls():
    x = torch.randn(32, 32)
    products = [row for row in profile_operators(lambda: x @ x @ x, CPU) if row["operator"] == "aten::mm"]
    assert [row["calls"] for row in products] == [2]


def test_ratio_is_the_median_of_rounds():
    ratio = ratio_to(reference=[1.0, 2.0, 4.0], seconds=[2.0, 2.0, 2.0])
    assert ratio == {"median": 1.0, "lower_quartile": 0.75, "upper_quartile": 1.5}


def test_rounds_call_everything_in_turns():
    class Watch:
        def seconds(self, call):
            return call()

    called = []
    calls = {name: lambda name=name: called.append(name) or len(called) for name in "abc"}
    seconds = time_in_turns(calls, Watch(), rounds=4)
    assert len(called) == 3 * (WARM_UP_ROUNDS + 4)
    assert all(set(called[i : i + 3]) == set("abc") for i in range(0, len(called), 3))
    assert len({tuple(called[i : i + 3]) for i in range(0, len(called), 3)}) > 1
    assert sorted(itertools.chain(*seconds.values())) == list(range(3 * WARM_UP_ROUNDS + 1, len(called) + 1))


def test_peak_counts_what_is_held_at_once():
    held = torch.ones(5000)

    def call():
        first = held[:1000] + 1
        second = first + 1
        del first
        return second + 1

    assert peak_bytes(call, CPU) == pytest.approx(8000, abs=100)  # and a few numbers


def test_rates_follow_from_times(monkeypatch):
    small_rates(monkeypatch)

    class OneSecond:
        def seconds(self, call):
            call()
            return 1.0

    assert measure_rates(CPU, torch.float32, OneSecond()) == Rates(2 * 64**3, 2 * 64**3, 2 * 2**16)


def test_bound_is_the_larger_of_arithmetic_and_memory():
    assert Work(flops=3 * 10**10, bytes=10**9).bound(RATES) == 3.0
    assert Work(flops=10**10, bytes=5 * 10**9).bound(RATES) == 5.0


@pytest.mark.parametrize(("part", "mode", "times"), [("model", "inference", 1), ("training", "training", 3)])
def test_operations_are_the_published(part, mode, times):
    case = Case(part, "S", mode, "fp32", False, 2, CPU)
    for name, gmacs, parameters in (("demo", 5.429, 24_596_000), ("dit", 6.068, 32_963_360)):
        workload = make_workload(CANDIDATES[name], case)
        assert workload.work.flops / 2 / 2 / times == pytest.approx(gmacs * 1e9, rel=1e-3)
        tokens = 2 * 12 * 2 * 256 * 384  # images, blocks, input and output, positions, width
        elements = parameters + tokens if mode == "inference" else 2 * (parameters + tokens) + 7 * parameters
        assert workload.work.bytes == 4 * elements


def test_sampling_has_two_calls_a_step():
    once = make_workload(CANDIDATES["demo"], tiny_case("model")).work
    sampled = make_workload(CANDIDATES["demo"], tiny_case("sampling", steps=5)).work
    assert sampled.flops == 10 * once.flops


def test_candidates_differ_in_what_they_say():
    dit, erf = (create_network(CANDIDATES[name], tiny_case("model")) for name in ("dit", "dit_erf"))
    assert {block.activation.approximate for block in dit.transformer_blocks} == {"tanh"}
    assert {block.activation.approximate for block in erf.transformer_blocks} == {"none"}
    assert dit.state_dict().keys() == erf.state_dict().keys()
    for name in ("dit", "dit_definition", "demo", "demo_definition"):
        workload, seen = make_workload(CANDIDATES[name], tiny_case()), []
        workload.module.register_forward_hook(lambda *args, seen=seen: seen.append(kernels.is_enabled()))
        workload.run()
        assert seen == [kernels.is_enabled() and not name.endswith("definition")]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["dit", "demo"])
def test_networks_are_as_users_have_them(name, precision):
    trained = make_workload(CANDIDATES[name], tiny_case("training", "training", precision))
    before = [p.clone() for p in trained.module.parameters()]
    assert all(p.any() and p.dtype == torch.float32 for p in before)
    trained.run()
    after = trained.module.parameters()
    assert all(p.requires_grad != p.equal(old) for p, old in zip(after, before, strict=True))
    trained.run()
    moments = 2 * sum(p.nbytes for p in trained.module.parameters() if p.requires_grad)
    assert trained.resident_bytes() >= moments + sum(p.nbytes for p in trained.module.parameters())
    inferring = make_workload(CANDIDATES[name], tiny_case("block", "inference", precision))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert {p.dtype for p in inferring.module.parameters()} == {dtype}
    assert name == "dit" or inferring.module.mixer.conv_local.is_fused


def test_training_step_leaves_no_gradients():
    workload = make_workload(CANDIDATES["demo"], tiny_case("model", "training"))
    called = []
    workload.module.transformer_blocks[0].mixer.v.weight.register_hook(lambda gradient: called.append(gradient.any()))
    workload.run()
    assert called and called[0]
    assert all(p.grad is None for p in workload.module.parameters())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_blocks_are_measured():
    rows = measure(tiny_case(compiled=True), ["dit", "demo"], rounds=1, rates=RATES)
    assert [row["compiled"] for row in rows] == [True, True]
    assert all(row["median_seconds"] > 0 for row in rows)


def test_interrupted_run_leaves_what_it_measured(tmp_path):
    report = Report(tmp_path / "speed.json", {}, CPU, {"fp32": RATES})
    for count in (1, 2):
        report.add([{"candidate": "dit"}])
        assert len(json.loads((tmp_path / "speed.json").read_text())["rows"]) == count
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]


def test_clock_counts_this_thread_alone():
    assert Clock(CPU).name == ("thread_time" if torch.get_num_threads() == 1 else "perf_counter")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["block", "--sizes", "M"], "invalid choice: 'M'"),
        (["model", "--precision", "fp16"], "invalid choice: 'fp16'"),
        (["block", "--rounds", "0", "--batch_size", "-1"], "--batch_size, --rounds must be at least 1"),
        (["model", "--override", "patch_size"], "'patch_size' is not FIELD=NUMBER, such as patch_size=4"),
        (["model", "--override", "patch_size=0"], "'patch_size=0' is not FIELD=NUMBER"),
        (["model", "--override", "patch_size=5"], "--override: "),
        (["model", "--override", "num_layers=4"], "--depth is the number of blocks"),
        (["model", "--override", "width=4"], "--override: DiT-S/2 has no config field ['width']"),
        (["sampling", "--steps", "0"], "--steps must be at least 1"),
        (["block", "--out", "/nowhere/speed.json"], "it must be a file in a folder there is"),
        (["training", "--modes", "inference"], "unrecognized arguments"),
        ([], "command"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_missing_gpu_is_named(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["block", "--device", "cuda"])
    assert "finds no GPU" in capsys.readouterr().err
