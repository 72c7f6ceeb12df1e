"""Does the packed engine give the right numbers on this GPU? One line per check, exit 1 if one fails.

    PYTHONPATH=. python benchmarks/gpu_check.py [--models qwen2 llama mistral gemma2]

Needs torch, transformers and peft. Small models with random weights; the truth is one row at a time in
float32 with PEFT's own adapters and transformers' own attention. In bfloat16 the packed engine may be as
wrong as the naive computation in bfloat16 is, times SLACK.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from kto_sweep.data.rows import TokenRow
from kto_sweep.data.table import RowTable
from kto_sweep.models.architecture import Recompute
from kto_sweep.train.packed import attention, kernels
from kto_sweep.train.packed import lora_product as lora_op
from kto_sweep.train.packed.attention import Packing, PrefixStore, packed_attention
from kto_sweep.train.packed.compatibility import packed_decoder
from kto_sweep.train.packed.engine import Engine
from kto_sweep.train.packed.lora import AdapterSpec, AdapterStack
from kto_sweep.train.packed.lora_product import AdaptedLayer, TokenRouting, adapter_product
from kto_sweep.train.packed.microbatch import MicrobatchLimit
from kto_sweep.train.packed.pack import PairedRow, PairedRows
from kto_sweep.train.packed.slot import ReferenceRows
from kto_sweep.train.packed.step import SlotBatch, add_gradients, score
from kto_sweep.trial import Trial

SLACK = 2.0
FP32_TOLERANCE = 2e-4

SIZES = {
    "vocab_size": 2000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MORE: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": 40}, "gemma2": {"sliding_window": 40}}

results: list[bool] = []


def report(name: str, *errors: tuple[str, float, float]) -> None:
    """One line for one check: each error with what is allowed."""
    passed = all(error <= allowed for _, error, allowed in errors)  # False for NaN
    results.append(passed)
    numbers = "  ".join(f"{what} {error:.1e} (<= {allowed:.1e})" for what, error, allowed in errors)
    print(f"{'PASS' if passed else 'FAIL'}  {name:<62} {numbers}", flush=True)


def relative(found: Tensor, truth: Tensor) -> float:
    found, truth = found.detach().double().cpu(), truth.detach().double().cpu()
    return ((found - truth).norm() / truth.norm()).item()


def model(kind: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The same weights whatever the dtype: they are rounded to bfloat16 first."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**SIZES, **MORE.get(kind, {})})
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.06)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
            parameter.copy_(parameter.bfloat16())
    return made.to(device, dtype).eval()


def rows(n: int = 8) -> PairedRows:
    """Every other prompt has a beginning in common, and two are the same."""
    rng = np.random.default_rng(0)
    beginning = rng.integers(3, SIZES["vocab_size"], 60).tolist()

    def tokens() -> list[int]:
        return rng.integers(3, SIZES["vocab_size"], rng.integers(2, 120)).tolist()

    prompts = [beginning * (at % 2) + tokens() for at in range(n - 1)]
    made = RowTable.from_rows(
        TokenRow(prompt, tokens(), bool(at % 3), at) for at, prompt in enumerate([*prompts, prompts[1]])
    )
    return PairedRows(made, [(at + 1) % n for at in range(n)], max_length=180)


# --- kernels -----------------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    layer_idx = 0


def ends(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


def check_attention(device: torch.device) -> None:
    """The fast path in bfloat16 against the path per sequence in float32, forward and backward."""
    lengths, suffixes, prefixes = [100, 1, 37, 64], [20, 3, 50, 1], [60, 0, 36, 63]
    for heads, groups in ((4, 4), (8, 2)):
        for window in (None, 16):
            outs = []
            for dtype in (torch.float32, torch.bfloat16):
                torch.manual_seed(1)
                q = torch.randn(1, heads, sum(lengths), 64, device=device).bfloat16()
                k, v = (torch.randn(1, groups, sum(lengths), 64, device=device).bfloat16() for _ in range(2))
                q, k, v = (x.to(dtype).requires_grad_() for x in (q, k, v))
                store = PrefixStore()
                packing = Packing(lengths, lengths, ends(lengths, device), ends(lengths, device), keep=store)
                out, _ = packed_attention(
                    Layer(), q, k, v, None, scaling=0.1, sliding_window=window, packing=packing
                )
                torch.manual_seed(2)
                # Not randn_like: it fills in the order of memory, which is another for each of the two paths.
                direction = torch.randn(out.shape, device=device)
                grads = torch.autograd.grad((out * direction).sum(), (q, k, v))
                n = sum(suffixes)
                q2 = torch.randn(1, heads, n, 64, device=device).bfloat16().to(dtype)
                k2, v2 = (torch.randn(1, groups, n, 64, device=device).bfloat16().to(dtype) for _ in range(2))
                onto, _ = packed_attention(
                    Layer(), q2, k2, v2, None, scaling=0.1, sliding_window=window,
                    packing=continued(lengths, suffixes, prefixes, store, device),
                )  # fmt: skip
                outs.append([out, onto, *grads])
            names = ("forward", "on kept keys", "q grad", "k grad", "v grad")
            errors = [
                (name, relative(found, truth), 0.01) for name, truth, found in zip(names, *outs, strict=True)
            ]
            report(f"attention, {heads} heads, {groups} of keys, window {window}", *errors)


def continued(
    lengths: list[int], suffixes: list[int], prefixes: list[int], store: PrefixStore, device: torch.device
) -> Packing:
    start, own, gather = 0, sum(lengths), []
    for length, suffix, prefix in zip(lengths, suffixes, prefixes, strict=True):
        gather += [*range(start, start + prefix), *range(own, own + suffix)]
        start, own = start + length, own + suffix
    keys = [prefix + suffix for prefix, suffix in zip(prefixes, suffixes, strict=True)]
    return Packing(
        suffixes, keys, ends(suffixes, device), ends(keys, device),
        prefix=store, gather=torch.tensor(gather, device=device),
    )  # fmt: skip


def check_adapters(device: torch.device) -> None:
    """Grouped kernels in bfloat16 against the loop in float32; some slots empty, some not neighbours."""
    slots, rank, features = 4, 16, 256
    for spans in ([(0, 0, 300)], [(0, 0, 7), (1, 7, 300)], [(1, 0, 130), (2, 130, 131), (3, 131, 300)],
                  [(0, 0, 100), (2, 100, 300)]):  # fmt: skip
        outs = []
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            x = torch.randn(300, features, device=device).bfloat16().to(dtype).requires_grad_()
            a, b = (torch.randn(slots, rank, features, device=device).bfloat16().to(dtype) for _ in range(2))
            a_grad, b_grad = (torch.zeros(slots, rank, features, device=device) for _ in range(2))
            noise = torch.zeros(features, dtype=torch.int32, device=device)
            site = AdaptedLayer("site", a, b, a_grad, b_grad, noise)
            last = {slot: end for slot, _, end in spans}
            slot_ends = np.maximum.accumulate([last.get(slot, 0) for slot in range(slots)])
            route = TokenRouting(spans, torch.tensor(slot_ends, dtype=torch.int32, device=device))
            out = adapter_product(x, torch.zeros(1, device=device, requires_grad=True), site, route)
            torch.manual_seed(1)
            (x_grad,) = torch.autograd.grad((out * torch.randn(300, features, device=device)).sum(), x)
            outs.append([out, x_grad, a_grad, b_grad])
        where = ",".join(str(slot) for slot, _, _ in spans)
        names = ("forward", "x grad", "A grad", "B grad")
        errors = [
            (name, relative(found, truth), 0.01) for name, truth, found in zip(names, *outs, strict=True)
        ]
        report(f"adapters, tokens in slots {where} of {slots}", *errors)


# --- gradients of whole models -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Numbers:
    log_probs: Tensor
    """(rows, 2)"""
    loss: float
    grads: Tensor
    """Of all adapters, one vector."""


SPECS = (
    AdapterSpec(16, 32.0, seed=0),
    AdapterSpec(8, 8.0, targets=("q_proj", "v_proj", "down_proj"), seed=1),
    AdapterSpec(24, 30.0, seed=2),
)
BETA, WEIGHTS = 0.1, (1.0, 1.5)


def adapters_of(kind: str, spec: AdapterSpec) -> dict[str, Tensor]:
    """Adapters that have left their start; bfloat16 holds them exactly."""
    stack = AdapterStack(model(kind, torch.float32, torch.device("cpu")), 1, spec.rank, [spec.targets])
    stack.start(0, spec)
    generator = torch.Generator().manual_seed(spec.seed)
    return {
        name: (tensor + 0.02 * torch.randn(tensor.shape, generator=generator)).bfloat16().float()
        for name, tensor in stack.tensors(0).items()
    }


def naive(
    kind: str, spec: AdapterSpec, data: PairedRows, dtype: torch.dtype, device: torch.device
) -> Numbers:
    """One row at a time: PEFT's adapters, eager attention, TRL's formula."""
    base, tensors = model(kind, dtype, device), adapters_of(kind, spec)
    targets = spec.targets if isinstance(spec.targets, str) else list(spec.targets)
    alpha: Any = spec.alpha  # PEFT takes a float too
    config = LoraConfig(r=spec.rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy: Any = get_peft_model(model(kind, dtype, device), config, autocast_adapter_dtype=False)
    parameters = {
        name.removeprefix("base_model.model.").removesuffix(".default.weight"): parameter
        for name, parameter in policy.named_parameters()
        if "lora_" in name
    }
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    grads = [torch.zeros(parameter.shape, device=device) for parameter in parameters.values()]
    with torch.no_grad():
        before = torch.stack([torch.stack(both(base, row)) for row in data])
        now = torch.stack([torch.stack(both(policy, row)) for row in data])
    z0 = (now - before)[:, 1].mean().clamp(min=0)
    loss = 0.0
    for at, row in enumerate(data):
        ratio = both(policy, row, mismatched=False)[0] - before[at, 0]
        up = ratio - z0 if row.desirable else z0 - ratio
        each = WEIGHTS[0 if row.desirable else 1] * (1 - torch.sigmoid(BETA * up)) / len(data)
        for total, grad in zip(grads, torch.autograd.grad(each, list(parameters.values())), strict=True):
            total.add_(grad.float())
        loss += each.item()
    by_name = dict(zip(parameters, grads, strict=True))
    return Numbers(now, loss, torch.cat([by_name[name].flatten() for name in sorted(by_name)]))


def both(policy: Any, row: PairedRow, *, mismatched: bool = True) -> list[Tensor]:
    """Log-probs of the row's completion and of its mismatched one."""
    found = []
    for completion in (row.completion, row.mismatched)[: 1 + mismatched]:
        ids = torch.from_numpy(np.concatenate([row.prompt, completion])).to(policy.device)
        logits = policy(input_ids=ids[None], use_cache=False).logits[0, len(row.prompt) - 1 : -1].float()
        found.append(logits.log_softmax(-1).gather(1, ids[len(row.prompt) :, None]).double().sum())
    return found


def packed(
    kind: str, specs: Sequence[AdapterSpec], data: PairedRows, dtype: torch.dtype, device: torch.device,
    limit: MicrobatchLimit, recompute: Recompute,
) -> list[Numbers]:  # fmt: skip
    """The same, every slot on the same rows in one step."""
    decoder = packed_decoder(model(kind, dtype, device))
    reference = score(decoder, data, MicrobatchLimit()).tolist()
    stack = AdapterStack(decoder.model, len(specs), max(s.rank for s in specs), {s.targets for s in specs})
    for slot, spec in enumerate(specs):
        stack.start(slot, spec, adapters_of(kind, spec))
    decoder.set_recompute(recompute)
    matched, mismatched = zip(*reference, strict=True)
    batches = [SlotBatch(slot, data, matched, mismatched, BETA, WEIGHTS, "kto") for slot in range(len(specs))]
    sums = add_gradients(decoder, stack, batches, limit)
    grads = stack.take_grads().clone()
    numbers = []
    for slot, spec in enumerate(specs):
        by_name = stack.layout.take(grads[slot], stack.names(spec), spec.rank)
        log_probs = score(decoder, data, limit, stack, slot)
        vector = torch.cat([by_name[name].flatten() for name in sorted(by_name)])
        numbers.append(Numbers(log_probs, sums.loss[slot].item(), vector))
    return numbers


def errors_of(found: Numbers, truth: Numbers) -> tuple[float, float, float]:
    """Relative errors of log-probs, loss and gradients."""
    return (
        relative(found.log_probs, truth.log_probs),
        abs(found.loss - truth.loss) / truth.loss,
        relative(found.grads, truth.grads),
    )


def worst(errors: Sequence[tuple[float, float, float]]) -> list[float]:
    return np.max(np.array(errors), axis=0).tolist()


def check_4bit(device: torch.device) -> None:
    """4-bit weights unpacked by one kernel against bitsandbytes' own; nothing without that package."""
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    except ImportError:
        print("4-bit weights: bitsandbytes is not installed, not checked")
        return
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((384, 640), (18944, 3584)):
            weight = torch.randn(shape, device=device, dtype=dtype)
            packed, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
            expected = dequantize_4bit(packed, state)
            unpacked = torch.empty_like(weight)
            kernels.unpack_4bit(packed, state, unpacked)
            error = relative(unpacked, expected)
            allowed = 1e-6 if dtype == torch.float32 else 1e-3
            report(f"4-bit weights {shape} {dtype}", ("unpacked", error, allowed))


def check_models(device: torch.device, kinds: Sequence[str]) -> None:
    data = rows()
    ways = {
        "at once": (MicrobatchLimit(), Recompute.NOTHING),
        "MLPs recomputed": (MicrobatchLimit(), Recompute.MLP),
        "5 rows at a time": (MicrobatchLimit(examples=5), Recompute.NOTHING),
        "1 row at a time, recomputed": (MicrobatchLimit(examples=1), Recompute.LAYER),
    }
    for kind in kinds:
        truths = [naive(kind, spec, data, torch.float32, device) for spec in SPECS]
        for dtype in (torch.float32, torch.bfloat16):
            allowed = [FP32_TOLERANCE] * 3
            if dtype == torch.bfloat16:
                rough = [naive(kind, spec, data, dtype, device) for spec in SPECS]
                naively = worst([errors_of(*pair) for pair in zip(rough, truths, strict=True)])
                floor = (1e-3, 1e-2, 1e-2)
                allowed = [SLACK * error + least for error, least in zip(naively, floor, strict=True)]
            for way, (limit, recompute) in ways.items():
                for slots in (1, 3):
                    found = packed(kind, SPECS[:slots], data, dtype, device, limit, recompute)
                    errors = worst([errors_of(*pair) for pair in zip(found, truths, strict=False)])
                    report(
                        f"{kind} {str(dtype)[6:]}, {slots} slots, {way}",
                        *zip(("log-probs", "loss", "grads"), errors, allowed, strict=True),
                    )


# --- training ----------------------------------------------------------------------------------------------


def trial(seed: int, rank: int, **more: Any) -> Trial:
    values = {"learning_rate": 1e-3, "batch_size": 8, "max_steps": 8, "warmup_ratio": 0.0, **more}
    return Trial(model="random", dataset="random", seed=seed, lora_r=rank, **values)


def losses(trials: Sequence[Trial], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(steps, slots)"""
    decoder = packed_decoder(model("qwen2", dtype, device))
    data = rows(24)
    referenced = ReferenceRows(data, score(decoder, data, MicrobatchLimit()).cpu().numpy())
    engine = Engine(decoder, referenced, referenced, slots=len(trials))
    for slot, each in enumerate(trials):
        engine.join(slot, each)
    steps = [engine.step().read() for _ in range(8)]
    return torch.tensor([[step[slot].values["loss"] for slot in range(len(trials))] for step in steps])


def check_training(device: torch.device) -> None:
    trials = [
        trial(0, 16),
        trial(1, 8, learning_rate=3e-3, lora_dropout=0.1),
        trial(2, 32, optimizer="adamw_8bit"),
    ]
    for dtype, allowed in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        together = losses(trials, dtype, device)
        for slot, each in enumerate(trials):
            alone = losses([each], dtype, device)
            error = float((together[:, slot] / alone[:, 0] - 1).abs().max())
            name = f"8 steps {str(dtype)[6:]}, slot {slot} of 3 against its trial alone"
            report(name, ("loss", error, allowed))


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Raise wherever the host waits for the GPU."""
    if device.type != "cuda":
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_no_waiting(device: torch.device) -> None:
    decoder = packed_decoder(model("qwen2", torch.bfloat16, device))
    data = rows(24)
    referenced = ReferenceRows(data, score(decoder, data, MicrobatchLimit()).cpu().numpy())
    for limit in (MicrobatchLimit(), MicrobatchLimit(examples=5)):
        engine = Engine(decoder, referenced, referenced, slots=2, limit=limit)
        engine.join(0, trial(0, 16))
        engine.join(1, trial(1, 8, lora_dropout=0.1))
        engine.step().read()
        try:
            with no_waiting(device):
                for _ in range(3):
                    engine.step()
            waited = 0.0
        except RuntimeError as error:
            print(f"      {str(error).splitlines()[0]}")
            waited = 1.0
        report(
            f"a step never waits for the GPU, {limit.examples or 'all'} rows at a time", ("waits", waited, 0)
        )
        engine.close()
        decoder = packed_decoder(decoder.model)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", default=["qwen2", "llama", "mistral", "gemma2"])
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    begin = time.perf_counter()
    if device.type == "cuda":
        grouped = lora_op._is_datacentre_gpu(device)
        print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, grouped kernels: {grouped}")
        copied = not (attention._GQA_FLAG or attention.supports_grouped_heads(device))
        print(
            f"INFO  keys and values are {'' if copied else 'not '}copied for each head of queries", flush=True
        )
        check_no_waiting(device)
        check_4bit(device)
    check_attention(device)
    check_adapters(device)
    check_training(device)
    check_models(device, arguments.models)
    print(f"{results.count(False)} of {len(results)} checks failed, {time.perf_counter() - begin:.0f} s")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
