"""The processes themselves: jobs, memory, processors, restarts."""

from blocks import Panel, Query, graph, quantile, rate

# Whatever the scrape calls them: ours are those that export what only ours do.
OURS = "on (job, instance) (flywheel_gateway_resident_generations or flywheel_topic_lag_records)"


def processes() -> list[Panel]:
    """Whether they live, and on what."""
    return [
        graph(
            "Since each job's last success",
            "Beyond three times a job's interval: `flywheel status` has its last error; runbook "
            "JobNotFresh.",
            Query(
                "time() - max by (exported_job) (flywheel_job_last_success_timestamp_seconds)",
                "{{exported_job}}",
            ),
            unit="s",
        ),
        graph(
            "Firings of the schedule",
            "failed or missed: the log names the job's error; runbook JobNotFresh. nothing is "
            "normal: the page says why a job had nothing to do.",
            Query(
                rate("flywheel_job_ticks_total", "exported_job, outcome"),
                "{{exported_job}} {{outcome}}",
            ),
            unit="ops",
        ),
        graph(
            "How long jobs take",
            "Longer than their interval: firings are missed; lengthen schedule.*, or find what "
            "slows them (the teacher, the disk).",
            Query(quantile(0.95, "flywheel_job_seconds", "exported_job"), "{{exported_job}} p95"),
            unit="s",
        ),
        graph(
            "Memory",
            "Resident. A learner above 300 MB or a gateway above 350 MB that goes on growing "
            "leaks: restart it and report it. Causal students have processes of their own.",
            Query(f"process_resident_memory_bytes and {OURS}", "{{job}} {{instance}}"),
            unit="bytes",
        ),
        graph(
            "Processors",
            "Busy cores. At the host's number for long: requests wait; add a gateway, or lower "
            "trainer.threads.",
            Query(
                f"rate(process_cpu_seconds_total[$__rate_interval]) and {OURS}",
                "{{job}} {{instance}}",
            ),
            unit="none",
        ),
        graph(
            "Time since the start",
            "A saw means that a process ends again and again: follow runbook ProcessRestarting, "
            "and look at how it ended in the supervisor's log.",
            Query(f"time() - (process_start_time_seconds and {OURS})", "{{job}} {{instance}}"),
            unit="s",
        ),
    ]
