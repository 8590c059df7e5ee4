"""Grouped queries reach a kernel that stores no scores, in every precision, with the same result."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trireme_trainer.engines.megatron import cpu_bridge


@pytest.fixture(autouse=True)
def _bridge() -> Iterator[None]:
    cpu_bridge.install()
    yield
    cpu_bridge.uninstall()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_expanded_groups_attend_as_grouped_ones_do(groups: int) -> None:
    from trireme_trainer.engines.megatron.attention import attend

    torch.manual_seed(0)
    query = torch.randn(2, 4, 9, 8, requires_grad=True)
    key, value = (torch.randn(2, groups, 9, 8, requires_grad=True) for _ in range(2))
    outcomes = []
    for expand_groups in (False, True):
        context = attend(query, key, value, 0.3, expand_groups=expand_groups)
        outcomes.append((context, *torch.autograd.grad(context.square().sum(), (query, key, value))))
    for grouped, expanded in zip(*outcomes, strict=True):
        torch.testing.assert_close(expanded, grouped)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_groups_are_expanded_for_fp32_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from trireme_trainer.engines.megatron.attention import attend, kernels_need_expanded_groups

    assert kernels_need_expanded_groups("cuda", torch.float32)
    assert not kernels_need_expanded_groups("cuda", torch.bfloat16)
    assert not kernels_need_expanded_groups("cpu", torch.float32)
    asked = []

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object) -> torch.Tensor:
        asked.append((key.size(1), value.size(1), options["enable_gqa"]))
        return query

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel)
    query, key = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8)
    for expand_groups in (True, False):
        attend(query, key, key, 1.0, expand_groups=expand_groups)
    assert asked == [(4, 4, False), (2, 2, True)]
