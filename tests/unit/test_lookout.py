"""What is asked in a thread of its own: answers are seen, and one that hangs or fails holds up nobody."""

from __future__ import annotations

import threading
import time

from workers.lookout import Lookout


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
