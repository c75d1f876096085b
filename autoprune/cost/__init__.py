"""Measured cost of a model. The closed-form cost of any choice of units is in `autoprune.graph`."""

from autoprune.cost.measured import count_flops, count_params, count_sparse_flops, latencies_ms, latency_ms, sparsity_of

__all__ = ["count_flops", "count_params", "count_sparse_flops", "latencies_ms", "latency_ms", "sparsity_of"]
