"""The shapes of the table: Llama models of 1B to 3B whole, and the 8B layer with fewer of them."""

from __future__ import annotations

from dataclasses import dataclass

from trireme_trainer.engines.interface import EngineConfig, ModelShape, OptimizerConfig, ScheduleConfig


@dataclass(frozen=True)
class Row:
    """One line of the table; sizes in sequences."""

    name: str
    model: ModelShape
    sequence_length: int
    micro_batch_size: int
    accumulation: int

    def config(self) -> EngineConfig:
        """What the engine trains for this line: bf16, AdamW with fp32 states, no recomputation."""
        return EngineConfig(
            model=self.model,
            schedule=ScheduleConfig(total_steps=1000, warmup_steps=10),
            sequence_length=self.sequence_length,
            global_batch_size=self.micro_batch_size * self.accumulation,
            micro_batch_size=self.micro_batch_size,
            optimizer=OptimizerConfig(learning_rate=1e-4),
            precision="bf16",
        )


def _llama3(hidden: int, intermediate: int, layers: int, heads: int, tied: bool) -> ModelShape:
    return ModelShape(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_theta=500000.0,
        tie_word_embeddings=tied,
    )


_TINYLLAMA = ModelShape(
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    max_position_embeddings=2048,
)

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row("tinyllama-1.1b", _TINYLLAMA, 2048, 8, 8),
        Row("llama-3.2-1b", _llama3(2048, 8192, 16, 32, tied=True), 4096, 4, 8),
        Row("llama-3.2-3b", _llama3(3072, 8192, 28, 24, tied=True), 4096, 1, 16),
        Row("llama-3-8b, 8 of 32 layers", _llama3(4096, 14336, 8, 32, tied=False), 4096, 2, 8),
    )
}
