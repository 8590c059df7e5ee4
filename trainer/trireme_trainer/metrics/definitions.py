"""The metrics of a training pod: what its agent exports of the job, of its ranks and of its devices."""

from __future__ import annotations

from trireme.metrics import (
    JOB_LABELS,
    STEP_BUCKETS,
    TRANSFER_BUCKETS,
    Metric,
    MetricGroup,
    counter,
    gauge,
    histogram,
)

LOSS = gauge(
    "trireme_train_loss", "Loss of the last step: mean cross entropy in nats, or the algorithm's.", *JOB_LABELS
)
VALIDATION_LOSS = gauge(
    "trireme_train_validation_loss", "Loss on the held-out rows at the last validation.", *JOB_LABELS, optional=True
)
BEST_VALIDATION_LOSS = gauge(
    "trireme_train_best_validation_loss", "The lowest of them, with early stopping.", *JOB_LABELS, optional=True
)
LEARNING_RATE = gauge("trireme_train_learning_rate", "Learning rate of the last step.", *JOB_LABELS)
GRAD_NORM = gauge(
    "trireme_train_grad_norm", "Norm of the whole gradient of the last step, before clipping.", *JOB_LABELS
)
STEP = gauge("trireme_train_step", "Completed optimizer steps; less than before after a restart.", *JOB_LABELS)
TOKENS = counter("trireme_train_tokens_total", "Tokens trained, those of repeated steps each time.", *JOB_LABELS)
THROUGHPUT = gauge(
    "trireme_train_tokens_per_second", "Tokens per second of the whole job, mean over the last 20 steps.", *JOB_LABELS
)
TFLOPS = gauge(
    "trireme_train_tflops_per_device",
    "10^12 operations of the model per second and device, mean over the last 20 steps.",
    *JOB_LABELS,
)
MFU = gauge("trireme_train_mfu_ratio", "Model FLOP/s utilisation, mean over the last 20 steps.", *JOB_LABELS, "basis")
ACCURACY = gauge(
    "trireme_train_accuracy_ratio",
    "Of classifiers: right answers; of DPO and reward models: comparisons whose better answer wins.",
    *JOB_LABELS,
    "phase",
    optional=True,
)
STEP_SECONDS = histogram(
    "trireme_step_duration_seconds",
    "Duration of a step, checkpoints and validation left out.",
    *JOB_LABELS,
    buckets=STEP_BUCKETS,
)
PART_SECONDS = histogram(
    "trireme_step_part_duration_seconds", "Duration of a part of a step.", *JOB_LABELS, "part", buckets=STEP_BUCKETS
)
STALL_SECONDS = histogram(
    "trireme_checkpoint_stall_seconds",
    "How long training stood still for a save.",
    *JOB_LABELS,
    buckets=TRANSFER_BUCKETS,
)
UPLOAD_SECONDS = histogram(
    "trireme_checkpoint_upload_seconds", "From a save to its commit.", *JOB_LABELS, buckets=TRANSFER_BUCKETS
)
RESTORE_SECONDS = histogram(
    "trireme_checkpoint_restore_seconds",
    "How long the ranks took to verify and load the checkpoint that they resumed from.",
    *JOB_LABELS,
    buckets=TRANSFER_BUCKETS,
    optional=True,
)
CHECKPOINT_BYTES = gauge("trireme_checkpoint_bytes", "Size of the checkpoint that was committed last.", *JOB_LABELS)
CHECKPOINT_FAILURES = counter(
    "trireme_checkpoint_failures_total",
    "Saves that failed, and tries to bring one into the store that did.",
    *JOB_LABELS,
    "reason",
    optional=True,
)

RANKS_ALIVE = gauge("trireme_agent_ranks_alive", "Ranks of the pod that run.", *JOB_LABELS)
PEAK_MEMORY = gauge(
    "trireme_rank_peak_memory_bytes",
    "The most that a rank ever held: allocated on its CUDA device, else resident.",
    *JOB_LABELS,
    "rank",
)
BUSY_SECONDS = gauge(
    "trireme_rank_busy_seconds",
    "Time of the last step that a rank worked before it waited for all others.",
    *JOB_LABELS,
    "rank",
)
SKEW_SECONDS = gauge(
    "trireme_rank_step_skew_seconds",
    "By how much that is longer than the mean of all ranks; the job's straggler has the largest. Ranks that compute "
    "layers or stages together wait for each other within it and look alike.",
    *JOB_LABELS,
    "rank",
)

DEVICE_LABELS = (*JOB_LABELS, "device")
DEVICE_INFO = gauge("trireme_device_info", "1; which device it is.", *DEVICE_LABELS, "uuid", "product", optional=True)
DEVICE_UTILISATION = gauge(
    "trireme_device_utilization_ratio",
    "Share of the driver's last sample period in which a kernel ran.",
    *DEVICE_LABELS,
    optional=True,
)
DEVICE_MEMORY_USED = gauge("trireme_device_memory_used_bytes", "Memory in use.", *DEVICE_LABELS, optional=True)
DEVICE_MEMORY_TOTAL = gauge("trireme_device_memory_total_bytes", "Memory of the device.", *DEVICE_LABELS, optional=True)
DEVICE_POWER = gauge("trireme_device_power_watts", "Power drawn.", *DEVICE_LABELS, optional=True)
DEVICE_TEMPERATURE = gauge(
    "trireme_device_temperature_celsius", "Temperature of the chip.", *DEVICE_LABELS, optional=True
)
DEVICE_CLOCK = gauge("trireme_device_sm_clock_hertz", "Clock of the multiprocessors.", *DEVICE_LABELS, optional=True)
DEVICE_THROTTLED = gauge(
    "trireme_device_clock_throttled",
    "1 while clocks are held down for this reason, else 0.",
    *DEVICE_LABELS,
    "reason",
    optional=True,
)
DEVICE_ECC_ERRORS = counter(
    "trireme_device_ecc_errors_total",
    "Memory errors since the driver was loaded.",
    *DEVICE_LABELS,
    "type",
    optional=True,
)
DEVICE_XID_ERRORS = counter(
    "trireme_device_xid_errors_total", "XID errors since the agent began.", *DEVICE_LABELS, "xid", optional=True
)


def _measured(name: str, text: str) -> Metric:
    return gauge(f"trireme_rlhf_{name}", text, *JOB_LABELS, "phase", optional=True)


REWARD_PART = gauge(
    "trireme_rlhf_reward_part", "Mean of one of the rewards, unweighted.", *JOB_LABELS, "reward", "phase", optional=True
)
MEASURES = {
    "accuracy": ACCURACY,
    "policyAccuracy": _measured("policy_accuracy_ratio", "Of DPO: comparisons whose better answer the policy prefers."),
    "reward": _measured("reward", "Mean weighted sum of the rewards."),
    "rewardDeviation": _measured("reward_deviation", "Of GRPO: standard deviation of a group's rewards, mean."),
    "meanReward": _measured("score_mean", "Of a reward model: mean score."),
    "minReward": _measured("score_min", "Of a reward model: lowest score."),
    "maxReward": _measured("score_max", "Of a reward model: highest score."),
    "margin": _measured("margin", "Of DPO and reward models: better answer's reward minus the other's, mean."),
    "chosenReward": _measured("chosen_reward", "Of DPO: implicit reward of the better answers, mean."),
    "rejectedReward": _measured("rejected_reward", "Of DPO: implicit reward of the other answers, mean."),
    "chosenLogProbability": _measured("chosen_log_probability", "Of DPO: of the better answers, mean."),
    "rejectedLogProbability": _measured("rejected_log_probability", "Of DPO: of the other answers, mean."),
    "kl": _measured("kl_nats", "Mean log-ratio of policy and reference per token."),
    "updateKl": _measured("update_kl_nats", "Of PPO: between the policy that drew and the one that learned."),
    "entropy": _measured("entropy_nats", "Mean entropy of the next token."),
    "clipFraction": _measured("clip_ratio", "Share of tokens whose probability ratio was clipped."),
    "valueClipFraction": _measured("value_clip_ratio", "Of PPO: share of values that were clipped."),
    "length": _measured("completion_length_tokens", "Mean length of completions."),
    "cutFraction": _measured("cut_ratio", "Share of completions that the limit of tokens ended."),
    "equalGroups": _measured("equal_groups_ratio", "Of GRPO: groups whose rewards are all the same."),
    "policyLoss": _measured("policy_loss", "Of PPO: loss of the policy."),
    "valueLoss": _measured("value_loss", "Of PPO: loss of the values."),
    "ptxLoss": _measured("ptx_loss", "Of PPO: loss on the text that is learned from besides."),
    "explainedVariance": _measured("explained_variance_ratio", "Of PPO: of the returns, by the values; 1 is all."),
    "updates": _measured("updates", "Of PPO: updates of the last step."),
}
"""Names in `status.progress.metrics`, without `start/` and `validation/`, and what each is exported as."""

JOB_GROUP = MetricGroup(
    "Training",
    "From the agent in the pod of slot 0, port 9464: facts of the whole job, told once. They begin anew with the pod.",
    (
        LOSS, VALIDATION_LOSS, BEST_VALIDATION_LOSS, LEARNING_RATE, GRAD_NORM, STEP, TOKENS, THROUGHPUT, TFLOPS, MFU,
        ACCURACY, STEP_SECONDS, PART_SECONDS, STALL_SECONDS, UPLOAD_SECONDS, RESTORE_SECONDS, CHECKPOINT_BYTES,
    ),
)  # fmt: skip
RLHF_GROUP = MetricGroup(
    "RLHF",
    "From the agent in the pod of slot 0 of an RLHFJob, port 9464; which of them depends on the algorithm.",
    (*(metric for metric in MEASURES.values() if metric is not ACCURACY), REWARD_PART),
)
POD_GROUP = MetricGroup(
    "Ranks",
    "From the agent in every pod of a job, port 9464: of the pod's own ranks.",
    (RANKS_ALIVE, PEAK_MEMORY, BUSY_SECONDS, SKEW_SECONDS, CHECKPOINT_FAILURES),
)
DEVICE_GROUP = MetricGroup(
    "Devices",
    "From the agent in every pod of a job, port 9464, of the devices that NVIDIA's driver shows in the pod (NVML). "
    "Where there is no such driver there are no such series; what a device does not tell, it has no series of.",
    (
        DEVICE_INFO, DEVICE_UTILISATION, DEVICE_MEMORY_USED, DEVICE_MEMORY_TOTAL, DEVICE_POWER, DEVICE_TEMPERATURE,
        DEVICE_CLOCK, DEVICE_THROTTLED, DEVICE_ECC_ERRORS, DEVICE_XID_ERRORS,
    ),
)  # fmt: skip
GROUPS = (JOB_GROUP, RLHF_GROUP, POD_GROUP, DEVICE_GROUP)

PARTS = {
    "data": "Fetching the step's rows.",
    "generation": "Of GRPO and PPO: drawing completions, and what policy, values and reference say of them.",
    "reward": "Of GRPO and PPO: scoring completions.",
    "forwardBackward": "Forward and backward passes of all micro-batches, with what ranks exchange within them.",
    "optimizer": "Gradient norm, clipping, update, and what ranks exchange for it.",
    "other": "The rest of the step.",
    "validation": "A validation between two steps.",
    "checkpoint": "A save between two steps.",
}
"""Parts of a step: values of the label `part`. The last two are not part of trireme_step_duration_seconds."""
