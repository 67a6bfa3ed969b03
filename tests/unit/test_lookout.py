"""What is asked in a thread of its own: answers are seen, and one that hangs or fails holds up nobody."""

from __future__ import annotations

import threading
import time

from workers.lookout import Lookout, Messenger


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_answers_that_hang_or_fail_leave_the_last_one():
    asked, answers, release = [], iter([{"a"}, OSError("gone"), None, {"b"}]), threading.Event()

    def look():
        asked.append(time.monotonic())
        answer = next(answers, {"c"})
        if isinstance(answer, OSError):
            raise answer
        if answer is None:
            release.wait(30)
            return {"late"}
        return answer

    lookout = Lookout(look, 0.001)
    assert lookout.seen == set()
    wait_for(lambda: len(asked) == 3)
    time.sleep(0.02)
    assert lookout.seen == {"a"}, "it hangs, after one that failed"
    assert len(asked) == 3
    release.set()
    wait_for(lambda: lookout.seen == {"c"})
    lookout.close()
    time.sleep(0.02)
    count = len(asked)
    time.sleep(0.05)
    assert len(asked) == count


def test_what_fails_is_logged_once_in_a_row(caplog):
    asked, answers = [], iter([{"a"}, OSError("one"), OSError("two"), {"b"}, OSError("three")])

    def look():
        asked.append(next(answers, {"c"}))
        if isinstance(asked[-1], OSError):
            raise asked[-1]
        return asked[-1]

    lookout = Lookout(look, 0.001)
    wait_for(lambda: lookout.seen == {"c"})
    lookout.close()
    assert [record.getMessage().split(": ")[-1] for record in caplog.records] == ["one", "three"]


def test_a_message_is_told_again_until_it_arrives_and_the_newest_wins(caplog):
    told, release, fail = [], threading.Event(), [True]

    def tell(value):
        release.wait(30)
        told.append(value)
        if fail[0]:
            raise OSError("gone")

    messenger = Messenger(tell, "the message", 0.001)
    messenger.say(1)
    time.sleep(0.02)
    messenger.say(2)
    messenger.say(3)
    began = time.monotonic()
    messenger.close(0.01)
    assert time.monotonic() - began < 5, "it hangs, and nobody waits"
    release.set()
    time.sleep(0.02)
    assert told == [1], "nothing is tried after the end"

    told.clear()
    messenger = Messenger(tell, "the message", 0.001)
    messenger.say(4)
    wait_for(lambda: len(told) >= 3)
    fail[0] = False
    messenger.say(5)
    messenger.close(30)
    assert told[-1] == 5
    assert set(told) == {4, 5}
    assert len([record for record in caplog.records if "the message failed" in record.getMessage()]) == 2, "one each"
