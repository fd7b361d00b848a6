"""How versions decode on this machine: the number format, its threads, and the forward made of them. Which one is the
fastest is `tuning.py`'s to find.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from transformers import PreTrainedModel

from playground.decoding import fused
from playground.decoding.choose_forward import transformers_forward_of
from playground.decoding.forward import AnyForward
from playground.decoding.graph_forward import GraphForward
from playground.decoding.number_formats import PARAMETER_BYTES


@dataclass(frozen=True)
class Choice:
    """How versions decode."""

    # one of number_formats.FORMATS, `w8a16` for the compiled step, `graph` for the graph forward, or `plain` for the
    # unmodified transformers forward
    number_format: str
    threads: Annotated[int, Field(ge=1)]
    # of one step of two replies
    milliseconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    # KL of the model's next token to the format's
    nats: Annotated[float, Field(ge=0, le=1)] | None = None
    slots: Annotated[int, Field(ge=0)] = 0  # pairs of replies that the graph forward decodes at once
    slot_tokens: Annotated[int, Field(ge=0)] = 0  # columns of each
    prefills_packed: bool = False  # whether prompts go through the packed weights, as steps do

    def forward(self, model: PreTrainedModel) -> AnyForward:
        """This version of the model, ready to run."""
        if self.number_format == "plain":
            return transformers_forward_of(model)
        if self.number_format == "graph":
            return GraphForward(model, self.slots, self.slot_tokens)
        return fused_forward(model, self.number_format, self.prefills_packed)

    def copy_bytes(self, model: PreTrainedModel) -> int:
        """Bytes of main memory that a version's own copy of the weights takes; 0 where it has none there."""
        return PARAMETER_BYTES.get(self.number_format, 0) * sum(weight.numel() for weight in model.parameters())


def fused_forward(model: PreTrainedModel, number_format: str, prefills_packed: bool = False) -> fused.FusedForward:
    """The forward of the Llama family on a CPU, in this format."""
    if number_format == "w8a16":
        from playground.decoding import w8a16  # compiles at the first import, so only where it is wanted

        return w8a16.W8A16Forward(model, prefills_packed=prefills_packed)
    return fused.FusedForward(model, number_format, prefills_packed=prefills_packed)
