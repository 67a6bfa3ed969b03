"""The page without a browser: what it is told of a run, who is answered, what is served, and its colours."""

from __future__ import annotations

import http.client
import json
import re
import socket
from importlib import resources
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_service.data import Baselines
from es_service.directory import RunDirectory
from es_service.errors import ConfigError
from es_service.page.board import Board, Seen
from es_service.page.curve import Curve
from es_service.page.server import Page
from es_service.tail import Facts, Follower, RunTail

ABOUT = {"name": "r", "goal": 10, "words": []}


def commit(generation, **changes):
    row = {
        "kind": "commit", "time": 100.0 + generation, "generation": generation, "seconds": 2.0, "bits_per_byte": 5.0,
        "model_bytes": 1000, "votes_plus": 6, "votes_minus": 3, "units": 10, "workers": 2, "bits_per_member": 0.8,
    }  # fmt: skip
    return row | changes


# Curves.


@given(st.integers(0, 400), st.integers(1, 20))
def test_a_thinned_curve_keeps_order_and_sums(rows, limit):
    curve = Curve(limit)
    for generation in range(rows):
        curve.add(generation, [1.0, generation])
    assert len(curve.points) <= limit
    generations = [point.generation for point in curve.points]
    assert all(a < b for a, b in pairwise(generations))
    shown = sum(point.count for point in curve.points)
    assert rows - shown < max(1, curve._rows_a_point)  # the rest waits in an open point
    assert sum(point.sums[0] for point in curve.points) == shown
    assert sum(point.sums[1] for point in curve.points) == sum(range(shown))


def test_a_generation_that_comes_again_takes_the_curve_back():
    curve = Curve()
    for generation in (0, 1, 2, 3, 2):
        curve.add(generation, [float(generation)])
    assert [point.generation for point in curve.points] == [0, 1, 2]
    assert curve.version == 1


# The board.


def test_a_browser_is_told_everything_once_and_then_what_is_new():
    board, seen = Board(ABOUT), Seen()
    board.take(Facts(metrics=[commit(0), {"kind": "evaluation", "generation": 0, "bits_per_byte": 7.5}]))
    board.set_running(True)
    news = board.news(seen)
    assert news["commits"] == {"reset": True, "rows": [[0, 5.0, 500, 0.6, 0.1, 0.3]]}
    assert news["held_out"] == {"reset": True, "rows": [[0, 7.5]]}
    assert news["now"]["state"] == "running"
    assert (news["now"]["generation"], news["now"]["held_out"], news["now"]["seconds_left"]) == (1, 7.5, 18.0)
    assert board.news(seen) == {}
    board.take(Facts(metrics=[commit(1)]))
    assert board.news(seen)["commits"] == {"reset": False, "rows": [[1, 5.0, 500, 0.6, 0.1, 0.3]]}
    board.take(Facts(metrics=[commit(1, bits_per_byte=4.0)]))  # again, after a crash
    assert [row[:2] for row in board.news(seen)["commits"]["rows"]] == [[0, 5.0], [1, 4.0]]
    assert board.news(Seen())["commits"]["reset"]


@pytest.mark.parametrize(
    "bad", [{"bits_per_byte": "x"}, {"bits_per_byte": float("nan")}, {"seconds": None}, {"units": True}]
)
def test_damaged_rows_are_passed_over(bad):
    board = Board(ABOUT)
    board.take(Facts(metrics=[commit(0), commit(1, **bad), {"kind": "evaluation", "generation": 1}]))
    news = board.news(Seen())
    assert [row[0] for row in news["commits"]["rows"]] == [0]
    json.dumps(news, allow_nan=False)


def test_the_states_of_a_run():
    def state(*rows, running=False):
        board = Board(ABOUT)
        board.take(Facts(events=rows))
        board.set_running(running)
        now = board.news(Seen())["now"]
        return now["state"], now["reason"]

    goal = {"kind": "finished", "generation": 10, "reason": "goal"}
    assert state() == ("starting", "")
    assert state(goal, running=True) == ("running", "")
    assert state(goal) == ("finished", "goal")
    assert state(goal | {"generation": 4, "reason": "interrupted"}) == ("stopped", "interrupted")
    assert state({"kind": "failed", "reason": "disk"}) == ("failed", "disk")
    assert state({"kind": "worker_ready", "worker": "w"}) == ("interrupted", "")
    assert state(goal, {"kind": "resumed"}) == ("interrupted", "")


def test_the_worker_table():
    board = Board(ABOUT)
    events = [
        {"kind": "worker_ready", "worker": "a", "about": "cpu", "time": 1.0},
        {"kind": "worker_ready", "worker": "b", "about": "cpu", "time": 2.0},
        {"kind": "fell", "worker": "a", "generation": 1},
        {"kind": "hedged", "worker": "a", "generation": 1},
        {"kind": "worker_gone", "worker": "b", "reason": "node lost", "time": 3.0},
    ]
    board.take(Facts(events=events, workers={"a": {"leases": 4, "bytes_per_second": 9, "x": 1}, "unknown": {}}))
    a, b = board.news(Seen())["workers"]
    assert a == {
        "name": "a",
        "state": "ready",
        "about": "cpu",
        "since": 1.0,
        "faults": 1,
        "leases": 4,
        "bytes_per_second": 9,
    }
    assert (b["state"], b["about"], b["since"]) == ("gone", "node lost", 3.0)
    events = [
        {"kind": "quarantined", "worker": "a", "generation": 1, "detail": "lease 0", "time": 4.0},
        {"kind": "worker_gone", "worker": "a", "reason": "it was found wrong", "time": 4.1},
    ]
    board.take(Facts(events=events))
    a, _ = board.news(Seen())["workers"]
    assert (a["state"], a["about"], a["since"], a["leases"]) == ("quarantined", "lease 0", 4.0, 4)
    board.take(Facts(events=[{"kind": "resumed", "generation": 2}]))
    assert board.news(Seen())["workers"] == []


def test_long_logs_are_cut_at_their_beginning():
    board, seen = Board(ABOUT), Seen()
    board.take(Facts(events=[{"kind": "late", "worker": "a", "generation": n} for n in range(1000)]))
    assert [row["generation"] for row in board.news(seen)["events"]] == list(range(700, 1000))
    board.take(Facts(events=[{"kind": "late", "worker": "a", "generation": 1000}]))
    assert [row["generation"] for row in board.news(seen)["events"]] == [1000]


# The server.


@pytest.fixture
def page(tiny_config, tmp_path):
    (tmp_path / "r").mkdir()
    directory = RunDirectory(tmp_path, "r")
    page = Page(tiny_config(), directory, 0)
    follower = Follower(RunTail(directory), page)
    yield page, directory
    follower.close()


def request(page, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", page._server.server_port, timeout=30)
    connection.request(method, path, headers=headers)
    return connection.getresponse()


def news_of(answer):
    """JSON of the events of a stream, until it ends."""
    for line in answer:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


@pytest.mark.parametrize("path", ["/", "/page.js", "/chart.js", "/page.css"])
def test_the_files_are_served_and_say_that_nothing_may_be_loaded_from_elsewhere(page, path):
    answer = request(page[0], path)
    assert answer.status == 200
    assert answer.read()
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/page.py",
        "/server.py",
        "/%2e%2e/config.json",
        "//etc/passwd",
        "/page.js?x",
        "/config.json",
    ],
)
def test_nothing_else_is_served(page, path):
    assert request(page[0], path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_can_be_changed(page, method):
    answer = request(page[0], method=method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", "/page.js", "/events", "/nothing"])
def test_head_is_get_without_the_body(page, path):
    """Read from the socket to its end: a client would not look for a body."""
    with socket.create_connection(page[0]._server.server_address, timeout=30) as connection:
        connection.sendall(f"HEAD {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert body == b""
    answer = request(page[0], path)
    assert head.startswith(f"HTTP/1.0 {answer.status} ".encode())
    for name in ("Content-Type", "Content-Length", "Content-Security-Policy"):
        lines = [line for line in head.decode().split("\r\n") if line.startswith(f"{name}: ")]
        assert lines == [f"{name}: {value}" for value in [answer.headers[name]] if value]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8270", 200), ("localhost:1", 200), ("localhost", 200), ("[::1]:8270", 200),
        ("evil.example", 403), ("evil.example:8270", 403), ("127.0.0.1.evil.example", 403), ("localhost:x", 403),
        ("", 403),
    ],
)  # fmt: skip
def test_only_names_of_this_machine_are_answered(page, host, status):
    assert request(page[0], Host=host).status == status
    assert request(page[0], "/page.js", Host=host).status == status


def test_it_listens_on_the_loopback_address_alone(page):
    assert page[0]._server.server_address[0] == "127.0.0.1"


def test_the_stream_tells_what_has_been_and_what_comes_until_the_end(page):
    served, directory = page
    text = '</script><img src=x onerror="alert(1)">\u2028'
    directory.log_metrics(**{key: value for key, value in commit(0).items() if key != "time"})
    directory.log_sample(generation=0, text=text)
    served.set_baselines(Baselines(5.0, 4.0, 3.0))
    stream = news_of(request(served, "/events"))
    found = {}
    while not {"commits", "samples", "baselines"} <= found.keys():
        found |= next(stream)
    assert found["samples"] == [{"generation": 0, "text": text}]
    assert found["baselines"] == {"unigram": 5.0, "bigram": 4.0, "gzip": 3.0}
    assert found["about"]["name"] == "r"
    directory.log_event("worker_ready", worker="w", about="cpu")
    while "workers" not in (later := next(stream)):
        pass
    assert later["workers"][0]["name"] == "w"
    assert "commits" not in later


def test_the_end_of_the_command_ends_the_streams(tiny_config, tmp_path):
    (tmp_path / "r").mkdir()
    page = Page(tiny_config(), RunDirectory(tmp_path, "r"), 0)
    stream = news_of(request(page, "/events"))
    next(stream)
    page.close()
    *_, last = stream
    assert last["ended"]
    with pytest.raises(OSError, match="refused"):
        request(page)


def test_there_is_a_limit_to_open_streams(page, monkeypatch):
    monkeypatch.setattr("es_service.page.server._MOST_STREAMS", 1)
    first = request(page[0], "/events")
    assert request(page[0], "/events").status == 503
    assert first.status == 200


def test_a_port_that_is_taken(tiny_config, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}"):
            Page(tiny_config(), RunDirectory(tmp_path, "r"), port)
        monkeypatch.setattr("es_service.page.server.DEFAULT_PORT", port)
        page = Page(tiny_config(), RunDirectory(tmp_path, "r"))
        assert page.url != f"http://127.0.0.1:{port}/"
        page.close()


def test_no_path_of_the_run_is_sent(tiny_config, tmp_path):
    page = Page(tiny_config(), RunDirectory(tmp_path, "r"), 0)
    _, news = page.news(Seen(), -1)
    page.close()
    units = news["about"].pop("units")
    assert list(units.values()) == ["bits/byte", "bytes/s", "pairs", "mean of perturbed members"]
    text = json.dumps(news)
    assert str(tmp_path) not in text
    assert "/" not in text


# The files.


def file(name):
    return resources.files("es_service.page").joinpath(name).read_text("utf-8")


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_parsed_as_html():
    for name in ("page.html", "page.css", "page.js", "chart.js"):
        urls = set(re.findall(r"https?://[^\s\"')]+", file(name)))
        assert all(url.startswith("http://www.w3.org/2000/svg") for url in urls), urls
    for name in ("page.js", "chart.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", file(name))
    assert " style=" not in file("page.html")
    assert not re.search(r"\son[a-z]+=", file("page.html"))


def luminance(colour):
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first, second):
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme):
    """WCAG 2.2: text 4.5, lines and outlines 3."""
    blocks = re.findall(r":root \{(.*?)\}", file("page.css"), re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", blocks[theme]))
    for text in ("text", "quiet"):
        for ground in ("ground", "panel", "notice"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for text in ("unigram", "bigram", "gzip", "bad", "good"):
        assert contrast(colours[text], colours["panel"]) >= 4.5, text
    for line in ("training", "held-out", "speed", "plus", "zero", "minus", "focus"):
        assert contrast(colours[line], colours["panel"]) >= 3, line
