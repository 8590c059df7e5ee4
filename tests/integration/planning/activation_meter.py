"""Print, as JSON, the bytes that one training step keeps for its backward pass. Argument: an EngineConfig as JSON."""

import json
import socket
import sys

import numpy as np
import torch

from trireme_trainer.engines.interface import (
    EngineConfig,
    ModelShape,
    RankEnvironment,
    ScheduleConfig,
    TokenBatch,
    create_engine,
)


def main() -> None:
    asked = json.loads(sys.argv[1])
    config = EngineConfig(model=ModelShape(**asked.pop("model")), schedule=ScheduleConfig(total_steps=2), **asked)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine = create_engine(config, RankEnvironment(0, 1, 0, "127.0.0.1", port))
    engine.setup()
    shape = (config.global_batch_size, config.sequence_length)
    tokens = np.arange(shape[0] * shape[1]).reshape(shape) % config.model.vocab_size
    batch = TokenBatch(tokens, tokens)
    kept: list[torch.Tensor] = []  # holding them all keeps one address from standing for two storages

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        engine.train_step(batch)
    # Weights are views of one buffer that holds them all; activations are far smaller.
    weights = 4 * engine.parameters
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    print(json.dumps({"bytes": sum(size for size in storages.values() if size < weights)}))
    engine.close()


main()
