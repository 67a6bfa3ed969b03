"""The simulator of benchmarks.scale: its sums, what it charges, and that it names the bottleneck that was put there."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from benchmarks import scale
from benchmarks.scale_costs import Costs

FREE = Costs(
    head_cpu=0.0, ray_call=0.0, relayed=0.0, relay=0.0, window=0.0, fsync=0.0, latency=0.0, link=inf, fetch=0.0,
    update=0.0, step=0.0, host=0.0, jitter=0.0,
)  # fmt: skip
SMALL = (4, 1 << 18, 100)
"""Workers, population, bytes: 16 leases of one wave each."""


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(scale, "MOST_GENERATIONS", 2)


def quiet(costs):
    """Without audits, which keep a worker waiting now and then."""
    return scale.run(*SMALL, costs, audit_share=0.0)


def test_workers_that_wait_for_nothing_only_evaluate():
    outcome = quiet(FREE)
    assert outcome.efficiency == pytest.approx(1.0)
    assert outcome.seconds == pytest.approx(4 * FREE.evaluation(2 * 8445, 100), rel=0.05)
    assert outcome.results == pytest.approx(16 / outcome.seconds)
    assert outcome.update == outcome.head_busy == 0


def test_what_is_charged_makes_a_generation_longer_by_as_much():
    free = quiet(FREE).seconds
    assert quiet(replace(FREE, fsync=0.5)).seconds == pytest.approx(free + 0.5)
    updated = quiet(replace(FREE, update=3.0))
    assert updated.seconds == pytest.approx(free + 3 * 0.016, rel=1e-3)
    assert updated.update == pytest.approx(3 * 0.016 / updated.seconds, rel=1e-3)
    assert quiet(replace(FREE, latency=0.01)).seconds > free + 0.02 - 1e-6


def test_the_head_is_charged_its_own_cpu_seconds():
    twice, more = quiet(replace(FREE, head_cpu=2.0)), quiet(replace(FREE, head_cpu=200.0))
    assert 0 < twice.head_busy < 0.5 < more.head_busy


@pytest.mark.parametrize(
    ("change", "name"),
    [({"link": 1e5}, "head's link"), ({"update": 100.0}, "updates"), ({"ray_call": 1.0}, "Ray calls"),
     ({"fsync": 9.0}, "fsync"), ({"latency": 5.0}, "latency")],
)  # fmt: skip
def test_the_bottleneck_has_a_name(change, name):
    costs = replace(Costs(), **change)
    assert scale.bottleneck(scale.run(*SMALL, costs), costs)[0] == name


def test_the_shortest_generation_that_reaches_the_goal():
    costs = replace(FREE, fsync=0.1)
    outcome = scale.shortest(1 << 18, costs, workers=4, audit_share=0.0)
    assert 0.9 <= outcome.efficiency < 0.905
    assert outcome.seconds == pytest.approx(1.0, rel=0.05)


def test_the_fewest_workers_are_found_to_two_fifths():
    for size in (1, 2, 3, 7, 64, 100, 999, 4097, 10_000):
        found = scale.fewest(lambda workers, size=size: workers >= size)
        assert size <= found <= 1.42 * size
    assert scale.fewest(lambda workers: False) is None


def test_the_size_at_which_something_bites(monkeypatch):
    monkeypatch.setattr(scale, "FREE", {name: scale.FREE[name] for name in ("Ray calls", "fsync")})
    costs, sizes = replace(FREE, ray_call=5e-3), (1 << 18, 1000)
    evaluating, calls, fsync = scale.bite_sizes(*sizes, costs, most=32).values()
    assert 1 < calls <= 32
    assert scale.without("Ray calls", scale.run(calls, *sizes, costs), costs) > 0.1
    assert scale.without("Ray calls", scale.run(calls // 2, *sizes, costs), costs) < 0.1
    assert scale.run(evaluating, *sizes, costs).efficiency < 0.9
    assert fsync is None


def test_seeds_draw_other_lease_times():
    costs = replace(FREE, jitter=0.01)
    one, same, other = (scale.run(*SMALL, costs, seed, audit_share=0.0).seconds for seed in (1, 1, 2))
    assert one == same != other


def test_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(scale, "sizes", lambda quick: [(2, 1 << 18)])
    scale.main(["--quick", "--disk", str(tmp_path), "--seeds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("machine: ")
    assert lines[-1].startswith("| 2 | 262,144 | 1,000 | 16 |")


def test_the_command_tells_where_parts_bite(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(scale, "FREE", {"fsync": scale.FREE["fsync"]})
    monkeypatch.setattr(scale, "GOAL_WORKERS", 2)
    monkeypatch.setattr(scale, "populations", lambda quick: [1 << 18])
    scale.main(["--quick", "--bites", "--text", "100", "--disk", str(tmp_path)])
    head, _, goal, fsync = capsys.readouterr().out.splitlines()[-4:]
    assert head == "| workers from which on | N = 262,144 |"
    assert goal.startswith("| less than 90% evaluating | ")
    assert fsync.endswith(" | - |")


def test_slices_shorten_long_updates_and_steps_are_as_long_as_the_model():
    costs = replace(FREE, update=100.0)
    whole = scale.run(64, 1 << 18, 100, costs, audit_share=0.0, sliced_updates="never")
    sliced = scale.run(64, 1 << 18, 100, costs, audit_share=0.0)
    assert whole.seconds == pytest.approx(1.6 + FREE.evaluation(2 * 2048, 100), rel=0.01)
    assert sliced.seconds < whole.seconds / 10
    assert sliced.down > 4.87e6 / 5 / sliced.seconds


def test_relays_bring_the_answers_of_a_node_together():
    def seconds(**costs):
        return scale.run(64, 1 << 20, 100, replace(FREE, **costs), audit_share=0.0).seconds

    alone = seconds(ray_call=1e-3, node_workers=1) - seconds()
    together = seconds(ray_call=1e-3, node_workers=8) - seconds()
    assert alone == pytest.approx(64 * 0.5e-3, rel=0.1), "orders go out one after the other, and answers come so"
    assert alone / 8 < together < alone / 5


def test_a_relay_waits_for_more_answers_but_not_for_long():
    def seconds(**costs):
        return scale.run(64, 1 << 20, 100, replace(FREE, jitter=0.1, **costs), audit_share=0.0).seconds

    assert seconds() <= seconds(window=5e-3) <= seconds() + 6e-3
