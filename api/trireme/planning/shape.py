"""The shape of a Llama-family model and its exact number of parameters."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LlamaShape(BaseModel):
    """Fields of a Hugging Face config.json of the Llama family, under their names there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocab_size: int = Field(ge=16, le=1_048_576, description="Entries of the vocabulary.")
    hidden_size: int = Field(ge=8, le=131_072, description="Width of the residual stream.")
    intermediate_size: int = Field(ge=8, le=1_048_576, description="Width inside the SwiGLU feed-forward block.")
    num_hidden_layers: int = Field(ge=1, le=1024, description="Transformer layers.")
    num_attention_heads: int = Field(ge=1, le=1024, description="Query heads; they must divide hidden_size.")
    num_key_value_heads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Key and value heads (grouped-query attention); as many as query heads when left out.",
    )
    head_dim: int | None = Field(
        default=None, ge=2, le=1024, description="Width of a head; hidden_size / num_attention_heads when left out."
    )
    max_position_embeddings: int | None = Field(
        default=None,
        ge=1,
        le=16_777_216,
        description="Longest sequence the model takes; data.sequenceLength when left out.",
    )
    rope_theta: float = Field(default=10000.0, ge=1.0, le=1e9, description="Base of the rotary embedding.")
    rms_norm_eps: float = Field(default=1e-5, ge=1e-12, le=1e-2, description="Epsilon of RMSNorm.")
    tie_word_embeddings: bool = Field(default=False, description="Use the input embedding as the output layer.")
    initializer_range: float = Field(
        default=0.02, ge=1e-6, le=1.0, description="Standard deviation of initial weights."
    )

    @property
    def key_value_heads(self) -> int:
        """Key and value heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @model_validator(mode="after")
    def _heads_divide(self) -> "LlamaShape":
        heads, groups = self.num_attention_heads, self.key_value_heads
        if self.head_dim is None and self.hidden_size % heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {heads}")
        if heads % groups:
            raise ValueError(f"num_attention_heads {heads} is not divisible by num_key_value_heads {groups}")
        if self.head_size % 2:
            raise ValueError(f"head size {self.head_size} is odd; rotary embeddings need an even one")
        return self


def layer_parameters(shape: LlamaShape, tensor: int = 1) -> int:
    """Parameters of one layer on one of `tensor` devices: q, k, v, o, gate, up, down and two norms.

    Norms are on every device. Llama: Touvron et al. 2023, arXiv:2302.13971, section 2.2.
    """
    h = shape.hidden_size
    attention = h * shape.head_size * (2 * shape.num_attention_heads + 2 * shape.key_value_heads)
    return (attention + 3 * h * shape.intermediate_size) // tensor + 2 * h


def embedding_parameters(shape: LlamaShape, vocab_size: int | None = None) -> int:
    """Parameters of one embedding (or output) matrix, for the shape's own or a padded vocabulary."""
    return (vocab_size or shape.vocab_size) * shape.hidden_size


def count_parameters(shape: LlamaShape) -> int:
    """Exact number of parameters of the whole model: embedding, layers, final norm, output layer unless tied."""
    matrices = 1 if shape.tie_word_embeddings else 2
    return (
        matrices * embedding_parameters(shape) + shape.num_hidden_layers * layer_parameters(shape) + shape.hidden_size
    )


def _llama(vocab: int, h: int, ffn: int, layers: int, heads: int, groups: int, **more: object) -> LlamaShape:
    return LlamaShape.model_validate(
        {
            "vocab_size": vocab,
            "hidden_size": h,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            **more,
        }
    )


_V2 = {"max_position_embeddings": 4096, "rope_theta": 10000.0}
_V3 = {"max_position_embeddings": 8192, "rope_theta": 500000.0}
_V31 = {"max_position_embeddings": 131072, "rope_theta": 500000.0}

# Shapes as in the config.json files of the published models.
PRESETS: dict[str, LlamaShape] = {
    "llama-7b": _llama(32000, 4096, 11008, 32, 32, 32, max_position_embeddings=2048, rms_norm_eps=1e-6),
    "llama2-7b": _llama(32000, 4096, 11008, 32, 32, 32, **_V2),
    "llama2-13b": _llama(32000, 5120, 13824, 40, 40, 40, **_V2),
    "llama2-70b": _llama(32000, 8192, 28672, 80, 64, 8, **_V2),
    "llama3-8b": _llama(128256, 4096, 14336, 32, 32, 8, **_V3),
    "llama3-70b": _llama(128256, 8192, 28672, 80, 64, 8, **_V3),
    "llama3.1-405b": _llama(128256, 16384, 53248, 126, 128, 8, **_V31),
    "llama3.2-1b": _llama(128256, 2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True, **_V31),
    "llama3.2-3b": _llama(128256, 3072, 8192, 28, 24, 8, head_dim=128, tie_word_embeddings=True, **_V31),
    "tinyllama-1.1b": _llama(32000, 2048, 5632, 22, 32, 4, max_position_embeddings=2048),
}
