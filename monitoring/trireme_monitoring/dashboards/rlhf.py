"""One RLHFJob: what its policy, values or reward model learn. Which panels have curves depends on the algorithm."""

from trireme.metrics import Metric
from trireme_monitoring.board import Board, Panel, Query, lines, number
from trireme_monitoring.dashboards.job import restart_marks
from trireme_monitoring.dashboards.variables import of_one_job
from trireme_monitoring.promql import by, one, rate, shown
from trireme_operator import metrics as operator
from trireme_trainer.metrics import definitions as trainer

M = trainer.MEASURES
PHASE = "{{phase}}"


def rlhf() -> Board:
    """The dashboard."""
    board = Board(
        "rlhf",
        "Trireme / RLHF",
        "One RLHFJob: rewards, divergence, completions, values, preferences.",
        of_one_job("RLHFJob"),
        marks=restart_marks(),
    )
    board.row("Now", *_now(), across=4)
    board.row("GRPO and PPO: rewards and divergence", *_policy())
    board.row("GRPO and PPO: completions", *_completions())
    board.row("PPO: losses and values", *_values())
    board.row("DPO and reward models: preferences", *_preferences())
    return board


def measured(title: str, about: str, unit: str, *metrics: tuple[Metric, str], top: float | None = None) -> Panel:
    """Curves of what an algorithm measures, one for each metric and phase."""
    queries = [Query(one(metric, "phase"), f"{name} {PHASE}".strip()) for metric, name in metrics]
    return lines(title, about, unit, *queries, top=top)


def _now() -> list[Panel]:
    step, total = one(operator.JOB_STEP), one(operator.JOB_TOTAL_STEPS)
    return [
        number("Progress", "Completed steps of all.", "percentunit", Query(f"{step} / ({total} > 0)"), decimals=1),
        number("Loss", "Of the last step.", "none", Query(one(trainer.LOSS)), decimals=3),
        number("Tokens per second", "Of prompts and completions.", "short", Query(one(trainer.THROUGHPUT))),
        number("Duration of a step", "Mean since the pod began.", "s", Query(_step_seconds())),
    ]


def _step_seconds() -> str:
    return f"sum({shown(trainer.STEP_SECONDS, suffix='_sum')}) / sum({shown(trainer.STEP_SECONDS, suffix='_count')})"


def _policy() -> list[Panel]:
    parts = by("max", "reward, phase", shown(trainer.REWARD_PART))
    return [
        measured(
            "Reward",
            "Mean weighted sum of the rewards, and of GRPO the deviation in a group: where it is 0 nothing is learned.",
            "none",
            (M["reward"], "reward"),
            (M["rewardDeviation"], "deviation in a group"),
        ),
        lines(
            "Rewards, each",
            "Mean of each reward of the manifest, unweighted. One that rises while the others fall is being gamed.",
            "none",
            Query(parts, f"{{{{reward}}}} {PHASE}"),
        ),
        measured(
            "KL divergence",
            "Mean log-ratio of policy and reference per token, in nats; of PPO also between the policy that drew and "
            "the one that learned.",
            "none",
            (M["kl"], "from the reference"),
            (M["updateKl"], "within an update"),
        ),
        measured(
            "Entropy",
            "Of the next token, in nats. A fall to 0 is a policy that says one thing only.",
            "none",
            (M["entropy"], "entropy"),
        ),
        measured(
            "Clipped",
            "Share of tokens whose probability ratio, or of values, that was clipped.",
            "percentunit",
            (M["clipFraction"], "ratios"),
            (M["valueClipFraction"], "values"),
        ),
        measured(
            "Equal groups",
            "Of GRPO: share of groups whose rewards are all the same, from which nothing is learned.",
            "percentunit",
            (M["equalGroups"], "equal groups"),
            top=1,
        ),
    ]


def _completions() -> list[Panel]:
    parts = by("sum", "part", rate(trainer.PART_SECONDS, suffix="_sum"))
    steps = f"scalar(sum({rate(trainer.STEP_SECONDS, suffix='_count')}))"
    return [
        measured("Length", "Mean length of completions, in tokens.", "none", (M["length"], "tokens")),
        measured(
            "Cut",
            "Share of completions that the limit of tokens ended.",
            "percentunit",
            (M["cutFraction"], "cut"),
            top=1,
        ),
        lines(
            "Parts of a step",
            "Seconds per step: drawing completions, scoring them, learning from them.",
            "s",
            Query(f"{parts} / {steps}", "{{part}}"),
            stacked=True,
        ),
    ]


def _values() -> list[Panel]:
    return [
        measured(
            "Losses",
            "Of PPO: of the policy, of the values, and on the text that is learned from besides.",
            "none",
            (M["policyLoss"], "policy"),
            (M["valueLoss"], "values"),
            (M["ptxLoss"], "text"),
        ),
        measured(
            "Explained variance",
            "Of PPO: of the returns, by the values; 1 is all, below 0 they are worse than none.",
            "none",
            (M["explainedVariance"], "explained"),
        ),
        measured(
            "Updates", "Of PPO: updates of the last step; fewer where one diverged.", "none", (M["updates"], "updates")
        ),
    ]


def _preferences() -> list[Panel]:
    return [
        measured(
            "Accuracy",
            "Share of comparisons whose better answer wins, and of DPO those that the policy itself prefers.",
            "percentunit",
            (trainer.ACCURACY, "better answer wins"),
            (M["policyAccuracy"], "policy prefers it"),
            top=1,
        ),
        measured("Margin", "Better answer's reward minus the other's, mean.", "none", (M["margin"], "margin")),
        measured(
            "Implicit rewards",
            "Of DPO: where both fall, the policy forgets both.",
            "none",
            (M["chosenReward"], "better"),
            (M["rejectedReward"], "other"),
        ),
        measured(
            "Log-probabilities",
            "Of DPO: of better and other answers, mean.",
            "none",
            (M["chosenLogProbability"], "better"),
            (M["rejectedLogProbability"], "other"),
        ),
        measured(
            "Scores",
            "Of a reward model: mean, lowest and highest.",
            "none",
            (M["meanReward"], "mean"),
            (M["minReward"], "lowest"),
            (M["maxReward"], "highest"),
        ),
        lines(
            "Loss",
            "Of training, and on held-out rows.",
            "none",
            Query(one(trainer.LOSS), "training"),
            Query(one(trainer.VALIDATION_LOSS), "validation"),
        ),
    ]
