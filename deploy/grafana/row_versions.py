"""Which version is served where, and how it got there."""

from blocks import TASK, Panel, Query, graph


def versions() -> list[Panel]:
    """Decisions in, swaps out."""
    return [
        graph(
            "Swaps",
            "Since each gateway's start. Anything but swapped, rolled_back and withdrawn is a "
            "refusal: the old student serves on; runbook SwapRefused.",
            Query("sum by (outcome) (flywheel_gateway_swaps_total)", "{{outcome}}"),
        ),
        graph(
            "Time to swap",
            "From noticing a publication to serving it: the mean since each gateway's start. "
            "Seconds: the encoder was loaded anew, or the disk is slow; move the data folder to a "
            "faster one.",
            Query(
                "sum(flywheel_gateway_swap_seconds_sum) / sum(flywheel_gateway_swap_seconds_count)",
                "mean",
            ),
            unit="s",
        ),
        graph(
            "Students in memory",
            "Champions, those kept for a rollback, those that drain. Growing with each swap: "
            "generations leak; restart the gateway and report it.",
            Query("flywheel_gateway_resident_generations", "{{instance}}"),
        ),
        graph(
            "Versions in use",
            "1 for each version, by what it is. The learner's champion without a gateway's: "
            "runbook GatewayBehindChampion.",
            Query(
                f"max by (version, role) (flywheel_student_info{{{TASK}}})",
                "learner: {{version}} {{role}}",
            ),
            Query(
                f"sum by (version, role) (flywheel_gateway_student_info{{{TASK}}})",
                "gateways: {{version}} {{role}}",
            ),
            unit="none",
            span=16,
        ),
        graph(
            "Evidence that the version before was better",
            "From 100 on (1 / rollback.alpha) it is enough: the champion is taken back by itself, "
            "or, where that is switched off, follow runbook ChampionRegressed.",
            Query(f"max by (task) (flywheel_regression_evidence{{{TASK}}})", "{{task}}"),
            unit="none",
        ),
    ]
