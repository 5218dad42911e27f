"""Where a call's time goes, by operator."""

from collections.abc import Callable

import torch
import torch._inductor.config
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

PROFILED_CALLS = 5
WARM_UP_CALLS = 3


def profile_operators(call: Callable[[], object], device: torch.device) -> list[dict]:
    """Operators (on a GPU: its kernels) by their own seconds a call, without those they call, the slowest first."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}):  # else compiled kernels have no names
        for _ in range(WARM_UP_CALLS):
            call()
    with profile(activities=activities) as profiler:
        for _ in range(PROFILED_CALLS):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    on_gpu = device.type == "cuda"
    rows = []
    for event in profiler.key_averages():
        if event.device_type != (DeviceType.CUDA if on_gpu else DeviceType.CPU):
            continue
        seconds = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6 / PROFILED_CALLS
        rows.append({"operator": event.key, "seconds": seconds, "calls": event.count / PROFILED_CALLS})
    total = sum(row["seconds"] for row in rows)
    rows = [{**row, "share": row["seconds"] / total} for row in rows]
    return sorted(rows, key=lambda row: row["seconds"], reverse=True)
