"""What the gateway adds to a request that it passes through, against what LiteLLM's proxy adds.

    make bench BENCHMARKS=passthrough      (installs LiteLLM into .cache; ARGS=--quick: without it)

A mock upstream answers at once. By turns the same client asks it directly, through the gateway and
through LiteLLM, with one connection and with sixteen. What a proxy adds is its median less the
median without it.
"""

import argparse
import json
import secrets
import statistics
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.litellm_proxy import VERSION, install, running_litellm
from benchmarks.load import Load, generate
from benchmarks.mock_upstream import mock_upstream
from benchmarks.results import write_results
from benchmarks.serving import running_gateway, task_settings
from service.demo.corpus import Corpus, load_corpus

CLIENTS = (1, 16)
KEY = f"sk-{secrets.token_hex(32)}"  # of this run
DIRECT, OURS, LITELLM = "direct", "gateway", "litellm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is asked, and of whom."""

    rounds: int = 3
    requests: Mapping[int, int]  # by number of clients
    litellm: bool = True


FULL = Plan(requests={1: 400, 16: 1_600})
QUICK = Plan(rounds=1, requests={1: 30, 16: 64}, litellm=False)

# Milliseconds at the median, by who was asked and by how many clients.
Round = Mapping[str, Mapping[int, float]]


def run(plan: Plan, folder: Path) -> tuple[dict[str, float], list[Round]]:
    """Figures, and the rounds that they come from."""
    corpus, data = load_corpus(), folder / "data"
    data.mkdir()
    with ExitStack() as stack:
        upstream = stack.enter_context(mock_upstream())
        urls = {DIRECT: upstream}
        address = stack.enter_context(running_gateway(data, _settings(corpus, upstream)))
        urls[OURS] = f"{address}/v1"
        if plan.litellm:
            proxy = stack.enter_context(running_litellm(folder, upstream, corpus.task, KEY))
            urls[LITELLM] = f"{proxy}/v1"
        for url in urls.values():
            _ask(url, corpus, 1, 30)
        rounds = [_round(plan, urls, corpus) for _ in range(plan.rounds)]
    return _figures(rounds), rounds


def _round(plan: Plan, urls: Mapping[str, str], corpus: Corpus) -> Round:
    found = {
        name: {
            clients: round(_ask(url, corpus, clients, plan.requests[clients]).p50, 4)
            for clients in CLIENTS
        }
        for name, url in urls.items()
    }
    for name, by_clients in found.items():
        told = ", ".join(f"{ms:.2f} ms ({clients} clients)" for clients, ms in by_clients.items())
        print(f"{name}: {told}", flush=True)
    return found


def _ask(url: str, corpus: Corpus, clients: int, requests: int) -> Load:
    texts = [texts[0] for texts in corpus.messages.values()]
    bodies = [
        json.dumps(
            {
                "model": corpus.task,
                "messages": [
                    {"role": "system", "content": corpus.instructions},
                    {"role": "user", "content": text},
                ],
            }
        ).encode()
        for text in texts
    ]
    return generate(
        f"{url}/chat/completions",
        bodies,
        clients=clients,
        requests=requests,
        headers=[("authorization", f"Bearer {KEY}")],
    )


def _figures(rounds: list[Round]) -> dict[str, float]:
    figures: dict[str, float] = {}
    ratios = []
    for clients in CLIENTS:
        added = {
            name: statistics.median(one[name][clients] - one[DIRECT][clients] for one in rounds)
            for name in rounds[0]
            if name != DIRECT
        }
        for name, milliseconds in added.items():
            figures[f"{name}_adds_ms_{clients}"] = round(milliseconds, 3)
        direct = statistics.median(one[DIRECT][clients] for one in rounds)
        figures[f"direct_ms_{clients}"] = round(direct, 3)
        if LITELLM in added:
            figures[f"ratio_to_litellm_{clients}"] = round(added[OURS] / added[LITELLM], 3)
            ratios.append(figures[f"ratio_to_litellm_{clients}"])
    return {"ratio_to_litellm": max(ratios), **figures} if ratios else figures


def _settings(corpus: Corpus, upstream: str) -> str:
    """No student is published, so that all of the task's requests pass through."""
    teacher = f'\n[teacher]\nbase_url = "{upstream}"\nmodel = "{corpus.task}"\n'
    return teacher + task_settings(corpus)


def main() -> None:
    """Run the benchmark and write `benchmarks/results/passthrough.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a few seconds; writes no results")
    parser.add_argument("--rounds", type=int, default=FULL.rounds)
    chosen = parser.parse_args()
    plan = QUICK if chosen.quick else replace(FULL, rounds=chosen.rounds)
    if plan.litellm:
        print(f"LiteLLM {VERSION} in an environment of its own ...", flush=True)
        install()
    with tempfile.TemporaryDirectory(prefix="passthrough-") as folder:
        figures, rounds = run(plan, Path(folder))
    for name, value in figures.items():
        print(f"{name}: {value:g}")
    if not chosen.quick:
        write_results("passthrough", figures, seed=0, litellm=VERSION, rounds=rounds)


if __name__ == "__main__":
    main()
