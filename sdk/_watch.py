"""sdk.watch(model): norms and histograms of gradients and parameters, gathered on the device and read a step later.

Once every `log_freq` optimizer steps a hook in front of the optimizer launches one norm kernel per group of tensors, stacks the results
into one small tensor and starts its copy to the CPU. Nothing waits: the numbers are logged when the next step comes by and the copy has
arrived. No collective is ever run by us. Under FSDP each rank holds shards: what it logs is the norm of its own part, and the key's
reduction ("norm": the root of the summed squares) makes the global norm of the ranks' parts.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections import deque
from typing import Any

from . import _run
from ._device import capturing
from ._plain import text
from .errors import UsageError

LOGS = ("gradients", "parameters", "all")
MOST_WAITING = 8
MOST_SAMPLED = 1 << 20  # elements of one tensor that a histogram looks at, evenly spread


class Watch:
    """What `watch` gave: `stop()` ends it; `step()` is for loops without a torch optimizer (call it before the parameters change)."""

    def __init__(self, model: Any, log: str, log_freq: int, each: bool, histograms: bool, bins: int, prefix: str) -> None:
        torch = sys.modules["torch"]
        self.torch, self.log_freq, self.each, self.histograms, self.bins = torch, log_freq, each, histograms, bins
        self.what = ("gradients", "parameters") if log == "all" else (log,)
        self.prefix = prefix
        self.named = [(text(str(name)), parameter) for name, parameter in model.named_parameters()]
        self.ids = {id(parameter) for _, parameter in self.named}
        self.flat_shards = _is_fsdp1(model)
        self.steps = 0
        self.waiting: deque[tuple[int, Any, Any, list[Any]]] = deque()
        self.skipped: dict[str, int] = {}
        self.handle: Any = None
        self.run = _run.current
        self._known: dict[int, bool] = {}
        self._told = False

    # When -----------------------------------------------------------------------------------------------------------------------

    def start(self) -> Watch:
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        def hook(optimizer: Any, args: Any, kwargs: Any) -> None:
            ours = self._known.get(id(optimizer))
            if ours is None:
                ours = self._known[id(optimizer)] = any(id(p) in self.ids for group in optimizer.param_groups for p in group["params"])
            if ours:
                self.step()

        self.handle = register_optimizer_step_pre_hook(hook)
        run = self.run
        if run is not None and run.writer is not None:
            self._define(run)
            run.writer.closing.append(self.stop)
        return self

    def stop(self) -> None:
        """No more norms from here on; those that are on their way are logged."""
        self._unhook()
        with contextlib.suppress(Exception):
            self._read(last=True)

    def _unhook(self) -> None:
        if self.handle is not None:
            self.handle.remove()
            self.handle = None

    def step(self) -> None:
        """Before an optimizer step. Never raises, never waits."""
        try:
            if self.run is None or self.run.finished or self.run is not _run.current:
                return self._unhook()
            if self.named and capturing(self.named[0][1]):
                return None  # inside a CUDA graph's capture nothing may be asked of the device
            if self.waiting:
                self._read()
            if self.steps % self.log_freq == 0:
                self._gather()
        except Exception as error:
            self._unhook()
            if self.run is not None and self.run.writer is not None:
                self.run.writer.say(f"watch() stopped: {type(error).__name__}: {error}", "watch")
        finally:
            self.steps += 1

    # What -----------------------------------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        torch = self.torch
        names: list[tuple[str, str, float]] = []  # (what, name, replicas)
        tensors: list[Any] = []
        with torch.no_grad():
            for what in self.what:
                for name, parameter in self.named:
                    value = parameter.grad if what == "gradients" else parameter
                    local = None if value is None else self._local(value)
                    if local is not None:
                        names.append((what, name, self._replicas(value)))
                        tensors.append(local)
            if not tensors:
                return
            norms = self._norms(tensors)
            spread = [self._spread(tensor) for tensor in tensors] if self.histograms else []
            device = norms.device
            flat = torch.cat([norms, *[_on(device, part) for part in spread]]) if spread else norms
            copy, event = self._to_cpu(flat)
        self.waiting.append((self.steps, copy, event, names))
        while len(self.waiting) > MOST_WAITING:
            self.waiting.popleft()
            self.skipped["late"] = self.skipped.get("late", 0) + 1

    def _local(self, value: Any) -> Any:
        """This rank's part of a tensor; None for what has no norm of its own here."""
        if hasattr(value, "placements"):  # DTensor (FSDP2, tensor parallel)
            if any(placement.is_partial() for placement in value.placements):
                self.skipped["partial"] = self.skipped.get("partial", 0) + 1  # its norm would need a collective
                return None
            value = value.to_local()
        if value.is_sparse:
            value = value.coalesce().values()
        if value.is_meta or value.numel() == 0:
            return None
        return value.detach()

    def _replicas(self, value: Any) -> float:
        """On how many ranks the same numbers lie, which must not be summed twice."""
        if hasattr(value, "placements"):
            mesh = value.device_mesh
            return math.prod(mesh.size(dim) for dim, placement in enumerate(value.placements) if placement.is_replicate())
        return 1 if self.flat_shards else self._world()

    def _world(self) -> int:
        distributed = getattr(self.torch, "distributed", None)
        with contextlib.suppress(Exception):
            if distributed is not None and distributed.is_available() and distributed.is_initialized():
                return int(distributed.get_world_size())
        return 1

    @property
    def sharded(self) -> bool:
        return self.flat_shards or any(
            hasattr(p, "placements") and any(placement.is_shard() for placement in p.placements) for _, p in self.named
        )

    def _norms(self, tensors: list[Any]) -> Any:
        """One float32 tensor of all norms, on the first tensor's device. Groups are alike in device and type."""
        torch = self.torch
        groups: dict[Any, list[int]] = {}
        for at, tensor in enumerate(tensors):
            groups.setdefault((tensor.device, tensor.dtype), []).append(at)
        out: list[Any] = [None] * len(tensors)
        for members in groups.values():
            some = [tensors[at] for at in members]
            try:
                found = torch._foreach_norm(some, 2, dtype=torch.float32)
            except (AttributeError, TypeError, RuntimeError):
                found = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in some]
            for at, norm in zip(members, found, strict=True):
                out[at] = norm
        device = tensors[0].device
        return torch.stack([_on(device, norm) for norm in out])

    def _spread(self, tensor: Any) -> Any:
        """[low, high, not finite, counts…] without a word to the CPU: histc over [0, 1] of scaled values needs no minimum read back."""
        torch = self.torch
        flat = tensor.flatten()
        stride = max(1, -(-flat.numel() // MOST_SAMPLED))
        flat = (flat[::stride] if stride > 1 else flat).float()
        odd = torch.logical_not(torch.isfinite(flat))
        low, high = flat.masked_fill(odd, math.inf).amin(), flat.masked_fill(odd, -math.inf).amax()
        scaled = ((flat - low) / (high - low).clamp_min(1e-30)).masked_fill(odd, -1.0)  # what is not finite falls outside of [0, 1]
        counts = torch.histc(scaled, self.bins, min=0.0, max=1.0)
        return torch.cat([torch.stack([low, high, odd.sum(dtype=torch.float32)]), counts])

    def _to_cpu(self, flat: Any) -> tuple[Any, Any]:
        if not flat.is_cuda:
            return flat.detach().cpu(), None
        torch = self.torch
        copy = torch.empty(flat.shape, dtype=flat.dtype, device="cpu", pin_memory=True)
        copy.copy_(flat, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(flat.device))
        return copy, event

    # Reading --------------------------------------------------------------------------------------------------------------------

    def _read(self, last: bool = False) -> None:
        """Log what has arrived: at the last step that the program logged, which is the step these numbers belong to."""
        writer = self.run.writer if self.run is not None else None
        while self.waiting and writer is not None:
            steps, copy, event, names = self.waiting[0]
            if event is not None and not event.query():
                if not last:
                    return
                event.synchronize()
            step = writer.last_step
            if step < 0:  # nothing was logged yet: a step of ours would count as the program's
                if not last and steps < 1000 * self.log_freq:
                    return
                step = steps
            self.waiting.popleft()
            self._log(writer, copy.tolist(), names, step)

    def _log(self, writer: Any, numbers: list[float], names: list[tuple[str, str, float]], step: int) -> None:
        sharded, count = self.sharded, len(names)
        values: dict[str, float] = {}
        for what in self.what:
            squares = [
                norm * norm / (replicas if sharded else 1)
                for norm, (kind, _, replicas) in zip(numbers, names, strict=False)
                if kind == what
            ]
            if squares:
                values[f"{self.prefix}{what}/global_norm"] = math.sqrt(sum(squares)) if all(map(math.isfinite, squares)) else math.nan
        if self.each:
            for norm, (what, name, replicas) in zip(numbers, names, strict=False):
                values[f"{self.prefix}{what}/{name}"] = norm / math.sqrt(replicas) if sharded else norm
        writer.log(values, step)
        size = 3 + self.bins
        for at, (what, name, _) in enumerate(names if self.histograms else ()):
            low, high, odd, *counts = numbers[count + at * size : count + (at + 1) * size]
            if not math.isfinite(low):
                low, high = 0.0, 1.0
            from ._media._histogram import answer, spread

            low, high = spread(low, high)
            whole = [int(n) for n in counts]
            meta = answer(whole, low, high, sum(whole) + int(odd), int(odd))
            doc = {"kind": "histogram", "digest": None, "bytes": 0, "mime": "", "meta": meta}
            writer.emit({"type": "media", "key": f"{self.prefix}{what}/{name}", **doc}, step)

    def _define(self, run: Any) -> None:
        """Norms of shards add in squares; norms of replicas are the same on every rank."""
        for what in self.what:
            run._emit(
                {"type": "define", "pattern": f"{self.prefix}{what}/*", "kind": "quality", "reduce": "norm" if self.sharded else "mean"}
            )


def _on(device: Any, tensor: Any) -> Any:
    return tensor if tensor.device == device else tensor.to(device, non_blocking=True)


def _is_fsdp1(model: Any) -> bool:
    """FullyShardedDataParallel's flat parameters are plain tensors; only the modules tell."""
    for module in model.modules():
        if any(base.__name__ == "FullyShardedDataParallel" for base in type(module).__mro__):
            strategy = str(getattr(module, "sharding_strategy", ""))
            return not strategy.endswith("NO_SHARD")
    return False


def watch(
    model: Any,
    log: str = "gradients",
    log_freq: int = 100,
    *,
    each: bool = True,
    histograms: bool = False,
    bins: int = 64,
    prefix: str = "",
) -> Watch | None:
    """See docs/media.md."""
    if log not in LOGS:
        raise UsageError(f"log is one of {', '.join(LOGS)}, not {log!r}")
    if not isinstance(log_freq, int) or isinstance(log_freq, bool) or log_freq < 1:
        raise UsageError(f"log_freq is a whole number from 1, not {log_freq!r}")
    if not isinstance(bins, int) or not 1 <= bins <= 512:
        raise UsageError(f"bins is from 1 to 512, not {bins!r}")
    if "torch" not in sys.modules or not callable(getattr(model, "named_parameters", None)):
        raise UsageError(f"watch() takes a torch module, not {type(model).__name__}")
    run = _run.current
    if run is None or run.writer is None:
        return None
    try:
        return Watch(model, log, log_freq, each, histograms, bins, prefix).start()
    except Exception as error:
        run.writer.say(f"watch() does not work here: {type(error).__name__}: {error} (training goes on)", "watch")
        return None
