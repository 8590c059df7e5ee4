"""vLLM's own metrics that dashboards show: named as the pinned version exports them, with the service's labels before.

A replica passes them through (`trireme_serving.metrics.relabelled`), so nothing else in the code knows them by name.
"""

from trireme.metrics import SERVICE_LABELS, counter, gauge, histogram

_LABELS = (*SERVICE_LABELS, "model_name", "engine")

RUNNING = gauge("vllm:num_requests_running", "Requests in the batches of the model.", *_LABELS)
WAITING = gauge("vllm:num_requests_waiting", "Requests that wait.", *_LABELS)
CACHE_USE = gauge("vllm:kv_cache_usage_perc", "Share of the KV cache in use; 1 is all.", *_LABELS)
PREFIX_QUERIES = counter("vllm:prefix_cache_queries_total", "Tokens looked up in the prefix cache.", *_LABELS)
PREFIX_HITS = counter("vllm:prefix_cache_hits_total", "Of these, tokens that were there.", *_LABELS)
PREEMPTIONS = counter("vllm:num_preemptions_total", "Requests put back because the KV cache was full.", *_LABELS)
PROMPT_TOKENS = counter("vllm:prompt_tokens_total", "Tokens of prompts.", *_LABELS)
GENERATED_TOKENS = counter("vllm:generation_tokens_total", "Tokens of answers.", *_LABELS)
SUCCESS = counter("vllm:request_success_total", "Requests that were answered.", *_LABELS, "finished_reason")
FIRST_TOKEN = histogram("vllm:time_to_first_token_seconds", "From request to first token.", *_LABELS, buckets=())
BETWEEN_TOKENS = histogram("vllm:inter_token_latency_seconds", "From token to token.", *_LABELS, buckets=())
WHOLE_REQUEST = histogram("vllm:e2e_request_latency_seconds", "From request to last token.", *_LABELS, buckets=())
QUEUE = histogram("vllm:request_queue_time_seconds", "Time in vLLM's queue.", *_LABELS, buckets=())

METRICS = (
    RUNNING, WAITING, CACHE_USE, PREFIX_QUERIES, PREFIX_HITS, PREEMPTIONS, PROMPT_TOKENS, GENERATED_TOKENS, SUCCESS,
    FIRST_TOKEN, BETWEEN_TOKENS, WHOLE_REQUEST, QUEUE,
)  # fmt: skip
