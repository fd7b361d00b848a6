"""Load the base model and its tokenizer, quantised or not, and say what they are and what they take.

Owns in which number format the weights run. Where they come from is `sources.py`'s, LoRA layers are `lora.py`'s. Knows
nothing about chats, votes or versions.
`python -m playground.models.loading` fetches and converts the embedded model (what `make setup` calls).
"""

import hashlib
import logging
import sys
import time
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from playground.models import attention, folders, lean_layers, sources, structure, templates
from playground.models.conversions import first_line
from playground.models.folders import ModelUnavailable
from playground.models.lora import NO_LORA
from playground.settings import Settings, SettingsError, nested, read, space
from playground.system import quick_imports

log = logging.getLogger(__name__)
transformers.utils.logging.disable_progress_bar()

MIN_POSITIONS = 128  # a model that takes fewer tokens holds no conversation
NOT_QUANTISED = ["lm_head", "dt_proj"]  # Mamba multiplies by the weight of dt_proj itself
DTYPE_TRIALS = 15  # of each format; a core may be busy or asleep at first
FEW_DTYPE_TRIALS = 4  # are enough where one format takes FAR times the other's least time
FAR = 3

EndTokens = frozenset[int | tuple[int, ...]]


class BaseIdentity(TypedDict):
    """Which base model it is; kept in the manifest of each version and with each reply."""

    model: str  # its name
    hash: str  # over its weights


# -- device and number format


def device_of(settings: Settings) -> torch.device:
    """The torch device that the settings mean; `auto` prefers CUDA, then MPS, then the CPU. On ZeroGPU torch only says
    that there is CUDA.
    """
    if settings.device != "auto":
        return torch.device(settings.device)
    if space.KIND == "zero-gpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def trunk_dtype(settings: Settings) -> torch.dtype:
    """The number format of the frozen trunk. `auto` on a CPU takes the faster of fp32 and bf16, since that differs:
    bf16 was up to twice slower on a CPU with AVX512-BF16 but no AMX, 9 times slower on one with AVX2 alone, and can be
    faster on others.

    A GPU gets bf16, or fp32 where it has no bf16 (before Ampere, such as a T4). In fp16 small weights would be lost,
    which changes the base's hash, and small gradients too.
    """
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    device = device_of(settings)
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
        return torch.bfloat16 if has_bf16 else torch.float32
    if device.type != "cpu":
        return torch.bfloat16
    seconds = _matmul_seconds([torch.float32, torch.bfloat16])
    fastest, slowest = sorted(seconds, key=seconds.__getitem__)
    log.info(
        "trunk in %s: a matmul takes %.1f ms, in the other format %.1f ms",
        fastest,
        1e3 * seconds[fastest],
        1e3 * seconds[slowest],
    )
    return fastest


def _matmul_seconds(dtypes: list[torch.dtype]) -> dict[torch.dtype, float]:
    """The least time of one matmul of a training forward's shape, in each format."""
    operands = {dtype: (torch.randn(1024, 576).to(dtype), torch.randn(1536, 576).to(dtype)) for dtype in dtypes}
    best = dict.fromkeys(dtypes, float("inf"))
    for trial in range(DTYPE_TRIALS):  # in turn, so that both see the same machine
        if trial >= FEW_DTYPE_TRIALS and max(best.values()) > FAR * min(best.values()):
            break
        for dtype, (x, weight) in operands.items():
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best


# -- loading


def load_tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, its chat template prepared. ModelUnavailable where it cannot be used with the
    model.
    """
    source = sources.source_of(settings)
    config = load_config(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # it reads files of strangers and may raise anything
        raise ModelUnavailable(_advice(source, error)) from None
    try:
        templates.prepare(tokenizer)
    except templates.BadTemplate as error:
        raise ModelUnavailable(
            f"The chat template of {source} cannot be used ({error}): correct chat_template in its "
            "tokenizer_config.json or chat_template.jinja, or pass --model another one."
        ) from None
    _check_vocabulary(tokenizer, config, source)
    return tokenizer


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, source: str) -> None:
    """ModelUnavailable where a text could hold a token that the model has no embedding for.

    A control token beyond the embeddings does no harm unless the template writes it: messages cannot hold it.
    """
    size = config.get_text_config().vocab_size
    without_embedding = [text for text, token_id in tokenizer.get_vocab().items() if token_id >= size]
    control = templates.of(tokenizer).control.texts
    written = {tokenizer.eos_token, tokenizer.bos_token}
    for text in without_embedding:
        if text not in control or text in written or text in tokenizer.chat_template:
            raise ModelUnavailable(
                f"The tokenizer of {source} has {len(without_embedding)} tokens more than the model has embeddings "
                f"({size:,}), such as {text!r}: call resize_token_embeddings and train the model on them, or take the "
                "tokenizer that the model came with."
            )
    if without_embedding:
        log.info(
            "the tokenizer has %d control tokens without an embedding; no text can hold them", len(without_embedding)
        )


def load_config(source: str) -> PretrainedConfig:
    """The transformers config of a folder or hub id. ModelUnavailable unless it is a language model's that transformers
    knows.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelUnavailable(
                f"{source} brings code of its own (trust_remote_code), which is never run here: pass --model one of an "
                "architecture that transformers has itself."
            ) from None
        raise ModelUnavailable(_advice(source, error)) from None
    folders.check_config(source, config.to_dict())
    return config


def load_trunk(
    settings: Settings, quantisation: str = "none", training: bool = False, lean: bool | None = None
) -> PreTrainedModel:
    """The frozen base model in eval mode: in `nf4` or `int8` (bitsandbytes), or for `none` in `trunk_dtype`.

    A `lean` one, as for `training`, has `lean_layers` and eager attention on a CPU: on a rollout's length, forward and
    backward take less than half of the fused kernel's time. In nf4, the scales of a trunk for training are quantised
    too (QLoRA, Dettmers et al. 2023).
    """
    source = sources.source_of(settings)
    dtype = trunk_dtype(settings)
    device = device_of(settings)
    config = load_config(source)
    eager = (training if lean is None else lean) and device.type == "cpu"
    options: dict[str, Any] = {"dtype": dtype}
    if eager:
        options["attn_implementation"] = "eager"
    if quantisation != "none":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=quantisation == "int8",
            load_in_4bit=quantisation == "nf4",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=training,
            llm_int8_skip_modules=NOT_QUANTISED if config.model_type in NO_LORA else None,
        )
        options["device_map"] = {"": str(device)}
    model = _from_pretrained(source, options)
    if eager:
        attention.use_grouped(model)
        lean_layers.use(model)
    if quantisation == "none":
        model.to(device)  # type: ignore[arg-type]  # the signature that transformers' decorator gives it has no self
    return frozen(model)


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    """A model that has just been made, in eval mode and without gradients, as chat and training need it."""
    for module in model.modules():
        # bitsandbytes repacks 4-bit weights on the first no-grad forward for AVX512-BF16, and from then on has no
        # backward
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # a bool, unlike most attributes
    structure.output_embeddings(model).register_forward_pre_hook(_contiguous)
    return model.eval().requires_grad_(False)


def _from_pretrained(source: str, options: dict[str, Any]) -> PreTrainedModel:
    """The model of `source`; ModelUnavailable where it cannot be loaded, or lacks weights that would then be random."""
    try:
        with quick_imports.without_dynamo():
            loaded = AutoModelForCausalLM.from_pretrained(
                source, trust_remote_code=False, output_loading_info=True, **options
            )
    except Exception as error:  # it reads files of strangers and may raise anything
        raise ModelUnavailable(_advice(source, error)) from None
    model, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    missing = sorted(set(info["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelUnavailable(
            f"The weights of {source} lack {missing[0]}{others}, which would be random: pass --model a whole language "
            "model, or download it again."
        )
    return model


def _contiguous(_head: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
    """Hand the head a copy of a slice of hidden states. A slice is multiplied row by row, each with a copy of the head:
    32 rows in bf16 took 2.3 s and 1.8 GB, and take 16 ms and nothing this way.
    """
    return (args[0].contiguous(),)


def _advice(source: str, error: Exception) -> str:
    """What to tell a person whose model could not be loaded."""
    if "Weights only load failed" in str(error):
        return (
            f"The pickled weights in {source} hold more than tensors and might run code: "
            "pass --model a folder with safetensors weights."
        )
    return (
        f"The base model {source!r} could not be loaded ({first_line(error)}): run `make setup` to fetch the embedded "
        "model, or pass --model a folder or a hub id that this machine can reach."
    )


# -- how many tokens a model takes


def bounded(settings: Settings) -> Settings:
    """The settings with the budgets of the chat and of rollouts, prompt and reply together, within what the base model
    takes. The reply keeps its limit up to half of that, and the prompt gets the rest. ModelUnavailable for a model that
    takes too little for a conversation.
    """
    source = sources.source_of(settings)
    most = structure.positions(load_config(source))
    if most is None:
        return settings
    if most < MIN_POSITIONS:
        raise ModelUnavailable(
            f"{source} takes {most} tokens, which is too little for a conversation: pass --model one that takes "
            f"{MIN_POSITIONS} or more."
        )
    tokens, changed = settings.flat() | {"ppo.rollout_tokens": settings.rollout_tokens}, {}
    for context, reply in (
        ("chat.context_tokens", "chat.reply_tokens"),
        ("ppo.rollout_context", "ppo.rollout_tokens"),
    ):
        prompt_tokens = tokens[context]
        new_tokens = tokens[reply]
        if prompt_tokens + new_tokens > most:
            changed[reply] = min(new_tokens, most // 2)
            changed[context] = min(prompt_tokens, most - changed[reply])
    if not changed:
        return settings
    log.warning(
        "the model takes %d tokens, prompt and reply together; so %s",
        most,
        ", ".join(f"{name} is {value}" for name, value in changed.items()),
    )
    return settings.with_values(**nested(changed))


def cut(prompt: list[int], completion: list[int], most: int | None) -> tuple[list[int], list[int]]:
    """A prompt and its completion, cut to `most` tokens: first from the prompt's beginning, of which one token stays,
    then from the completion's end.
    """
    if most is None or len(prompt) + len(completion) <= most:
        return prompt, completion
    completion = completion[: most - 1]
    return prompt[len(prompt) + len(completion) - most :], completion


# -- what the model and the tokenizer are


def base_identity(model: torch.nn.Module, settings: Settings) -> BaseIdentity:
    """The base model's name, and a hash over every tensor's name, shape and first row, which is the same in each number
    format.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        first_row = tensor.reshape(-1)[: tensor.shape[-1]].to(torch.bfloat16).cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + first_row.view(torch.int16).numpy().tobytes())
    source = sources.source_of(settings)
    return {"model": Path(source).name if Path(source).exists() else source, "hash": digest.hexdigest()}


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the chat template, kept with each reply."""
    return hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EndTokens:
    """Ids of the tokens that end a reply, by the chat template and by the model's own settings. Where the template ends
    a reply by words, their ids are one tuple.
    """
    of_model = model.generation_config.eos_token_id
    ids = of_model if isinstance(of_model, list) else [of_model]
    end = templates.of(tokenizer).end
    of_template = end[0] if len(end) == 1 else end
    return frozenset([*(i for i in [*ids, tokenizer.eos_token_id] if i is not None), of_template])


if __name__ == "__main__":
    try:
        print(f"Embedded model: {sources.fetch_embedded(read(None, Settings, 'python -m playground.models.loading'))}")
    except (ModelUnavailable, SettingsError) as error:
        sys.exit(str(error))
