"""The loss curve of the demo, with the fault and the resume marked."""

from pathlib import Path

from trireme_cli.demo.timeline import Timeline


def plot_losses(timeline: Timeline, path: Path) -> None:
    """Write the curve as a PNG: one line per attempt, the lost steps in both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), dpi=120)
    points = timeline.losses()
    for attempt in sorted({attempt for _, _, attempt in points}):
        line = sorted((step, loss) for step, loss, a in points if a == attempt)
        axes.plot([s for s, _ in line], [v for _, v in line], linewidth=1.6, label=f"attempt {attempt}")
    if timeline.fault is not None:
        axes.axvline(timeline.fault.step, color="tab:red", linestyle="--", label=f"{timeline.fault.node} killed")
    resumed = timeline.resume_step()
    if resumed is not None:
        axes.axvline(resumed, color="tab:green", linestyle=":", label=f"resumed from step {resumed}")
    axes.set_xlabel("step")
    axes.set_ylabel("training loss (nats per token)")
    axes.set_title("Training on the Python standard library, tensor 2 x pipeline 2")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
