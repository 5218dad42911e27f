"""The networks that `eval/benchmark.py` compares, and what it has them do."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from demo_diffusion import DEMOPipeline, create_transformer, kernels
from demo_diffusion.flops import count_macs
from demo_diffusion.models import ClassConditionalTransformer, DEMOTransformer2DModel
from demo_diffusion.objectives import FlowObjective

from .roofline import Work

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GUIDANCE_SCALE = 4.0
# Of training over inference. Products: those of the inputs' and of the weights' gradients. Memory: a gradient for each
# tensor that is counted.
TRAINING_FLOPS, TRAINING_BYTES = 3, 2
OPTIMIZER_PASSES = 7  # AdamW reads a weight, its gradient and two moments, and writes all but the gradient


@dataclass(frozen=True)
class Candidate:
    """A network as it is compared.

    Attributes:
        family: "DiT" or "DEMO".
        exact_gelu: DiT's GELU by erf, as D-EMO has it, in place of its approximation by tanh.
        by_definition: without the operators that `demo_diffusion.kernels` chooses.
    """

    label: str
    family: str
    exact_gelu: bool = False
    by_definition: bool = False


REFERENCE = "dit"
CANDIDATES = {
    REFERENCE: Candidate("DiT", "DiT"),
    "dit_erf": Candidate("DiT, erf GELU", "DiT", exact_gelu=True),
    "dit_definition": Candidate("DiT by its definition", "DiT", by_definition=True),
    "demo_definition": Candidate("D-EMO by its definition", "DEMO", by_definition=True),
    "demo": Candidate("D-EMO", "DEMO"),
}


@dataclass(frozen=True)
class Case:
    """What all candidates do alike.

    Attributes:
        part: "block", "model" (a call of the network, forth and in training back), "sampling" or "training".
        size: "S", "B", "L" or "XL", of patch size 2.
        mode: "inference" or "training".
        precision: "fp32" or "bf16": the weights' in inference, autocast's in training, where weights are fp32.
        compiled: each block by `torch.compile`, as `train/train_demo.py` has it.
        depth: number of blocks; None: that of the size.
        steps: of sampling.
        overrides: other config fields of the network.
    """

    part: str
    size: str
    mode: str
    precision: str
    compiled: bool
    batch_size: int
    device: torch.device
    depth: int | None = None
    steps: int = 1
    overrides: dict = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        return DTYPES[self.precision]

    @property
    def weight_dtype(self) -> torch.dtype:
        return self.dtype if self.mode == "inference" else torch.float32

    def precision_context(self):
        is_mixed = self.dtype != self.weight_dtype
        return torch.autocast(self.device.type, self.dtype) if is_mixed else nullcontext()


@dataclass
class Workload:
    """A call to time.

    Attributes:
        run: does all of it once.
        work: what it must do at least.
        network_alone: of sampling, the network's calls without the pipeline around them.
    """

    run: Callable[[], object]
    work: Work
    num_blocks: int
    module: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    network_alone: Callable[[], object] | None = None

    def resident_bytes(self) -> int:
        """Of weights, buffers and the optimizer's moments: what is held between two runs."""
        held = [*self.module.parameters(), *self.module.buffers()]
        for moments in self.optimizer.state.values() if self.optimizer is not None else ():
            held += [x for x in moments.values() if isinstance(x, torch.Tensor)]
        return sum(x.nbytes for x in held)


def make_workload(candidate: Candidate, case: Case) -> Workload:
    """The candidate with random weights on the case's device, and its call."""
    with torch.device(case.device):
        network = prepare(create_network(candidate, case), case)
        make = {"sampling": _sampling, "training": _training}.get(case.part, _calls)
        workload = make(network, case, _work(candidate, case))
    if candidate.by_definition:
        workload.run = _by_definition(workload.run)
        workload.network_alone = workload.network_alone and _by_definition(workload.network_alone)
    return workload


def create_network(candidate: Candidate, case: Case) -> ClassConditionalTransformer:
    depth = 1 if case.part == "block" else case.depth
    overrides = case.overrides if depth is None else {**case.overrides, "num_layers": depth}
    network = create_transformer(f"{candidate.family}-{case.size}/2", **overrides)
    if candidate.exact_gelu:
        for block in network.transformer_blocks:
            block.activation = nn.GELU()
    return network


def prepare(network: ClassConditionalTransformer, case: Case) -> ClassConditionalTransformer:
    """As users have it: in inference cast and folded, in training in fp32; compiled block by block."""
    for parameter in network.parameters():
        if not parameter.any():  # layers that start at zero would give gradients of zero, which some code is fast at
            nn.init.normal_(parameter, std=0.02)
    network.train(case.mode == "training")
    nn.Module.to(network, case.weight_dtype)  # diffusers' own warns of modules to be kept in float32; there are none
    if case.mode == "inference" and isinstance(network, DEMOTransformer2DModel):
        network.fuse()
    if case.compiled:
        network.compile_repeated_blocks(fullgraph=True, dynamic=False)
    return network


def _by_definition(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        with kernels.disabled():
            call()

    return run


def _calls(network: ClassConditionalTransformer, case: Case, work: Work) -> Workload:
    """A call of the block or the whole network, with gradients of everything in training."""
    module, inputs = _module_and_inputs(network, case, case.batch_size)

    @torch.no_grad()
    def infer() -> None:
        module(*inputs)

    leaves = [x for x in (*inputs, *module.parameters()) if x.requires_grad]

    def train() -> None:
        with case.precision_context():
            output = module(*inputs)
        output = output if case.part == "block" else output.sample
        output.backward(torch.ones_like(output))
        for leaf in leaves:
            leaf.grad = None

    run = infer if case.mode == "inference" else train
    return Workload(run, work, len(network.transformer_blocks), module)


def _module_and_inputs(
    network: ClassConditionalTransformer, case: Case, batch_size: int
) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """What the case calls and random inputs, on the current default device."""
    config, dtype = network.config, case.weight_dtype
    if case.part != "block":
        latents = torch.randn(batch_size, *network.input_shape, dtype=dtype)
        return network, (latents, torch.rand(batch_size), torch.arange(batch_size) % config.num_classes)
    width = network.pos_embed.shape[-1]
    tokens = torch.randn(batch_size, *network.grid_size, width, dtype=dtype)
    conditioning = F.silu(torch.randn(batch_size, width, dtype=dtype))
    in_training = case.mode == "training"
    return network.transformer_blocks[0], (tokens.requires_grad_(in_training), conditioning.requires_grad_(in_training))


def _sampling(network: ClassConditionalTransformer, case: Case, work: Work) -> Workload:
    """`DEMOPipeline` with classifier-free guidance, from noise to latents."""
    pipe = DEMOPipeline(network, FlowMatchEulerDiscreteScheduler())
    pipe.set_progress_bar_config(disable=True)
    latents, _, labels = _module_and_inputs(network, case, case.batch_size)[1]
    labels = labels.tolist()
    inputs = _module_and_inputs(network, case, 2 * case.batch_size)[1]

    def run() -> None:
        pipe(
            labels,
            guidance_scale=GUIDANCE_SCALE,
            num_inference_steps=case.steps,
            latents=latents,
            output_type="latent",
        )

    @torch.no_grad()
    def network_alone() -> None:
        for _ in range(case.steps):
            network(*inputs)

    return Workload(run, work, len(network.transformer_blocks), network, network_alone=network_alone)


def _training(network: ClassConditionalTransformer, case: Case, work: Work) -> Workload:
    """A whole step of flow matching on latents at hand: forward, loss, backward, AdamW."""
    objective = FlowObjective()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4, weight_decay=0)
    x0, _, labels = _module_and_inputs(network, case, case.batch_size)[1]

    def run() -> None:
        noise, t = torch.randn_like(x0), torch.rand(len(x0), device=x0.device)
        with case.precision_context():
            output = network(objective.add_noise(x0, noise, t), t, labels).sample
        objective.losses(output, x0, noise, t)["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return Workload(run, work, len(network.transformer_blocks), network, optimizer)


def _work(candidate: Candidate, case: Case) -> Work:
    """What a call must do at least.

    Operations are those of `count_macs`. Bytes are each parameter's, and each block's input's and output's, once a
    call: what is inside a block might never leave the chip.
    """
    with kernels.disabled(), torch.device("meta"):
        network = nn.Module.to(create_network(candidate, case), case.weight_dtype)
        module, inputs = _module_and_inputs(network, case, 1)
        macs = count_macs(module, *inputs)
    calls, samples = (case.steps, 2 * case.batch_size) if case.part == "sampling" else (1, case.batch_size)
    parameters = sum(p.numel() for p in module.parameters())
    tokens = 2 * samples * network.pos_embed.numel() * len(network.transformer_blocks)
    flops, elements = 2 * macs * samples * calls, (parameters + tokens) * calls
    if case.mode == "training":
        flops, elements = TRAINING_FLOPS * flops, TRAINING_BYTES * elements
    if case.part == "training":
        elements += OPTIMIZER_PASSES * parameters
    return Work(flops, elements * case.weight_dtype.itemsize)
