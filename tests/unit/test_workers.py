"""Who does what, when several threads share tasks and what these leave behind."""

from __future__ import annotations

import threading
import time
from functools import partial
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.postgres import workers
from backupd.postgres.process import Running
from backupd.postgres.workers import Behind

SECONDS = 20


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 5))
def test_everything_is_done_once(leaves: list[int], jobs: int) -> None:
    """Each task leaves so much behind, and what is left behind leaves more."""
    behind, lock = Behind(), threading.Lock()
    done: list[tuple[int, ...]] = []

    def left(place: tuple[int, ...]) -> None:
        with lock:
            done.append(place)
        if len(place) < 3:
            behind.add(partial(left, (*place, 0)))

    def task(number: int) -> int:
        for each in range(leaves[number]):
            behind.add(partial(left, (number, each)))
        return number * number

    tasks = [partial(task, number) for number in range(len(leaves))]
    results, _ = workers.run(tasks, jobs, Running(), behind=behind)
    assert results == [number * number for number in range(len(leaves))]
    expected = [(number, each) for number, size in enumerate(leaves) for each in range(size)]
    assert sorted(done) == sorted([*expected, *((*place, 0) for place in expected)])


def test_one_thread_stays_with_the_tasks() -> None:
    """The second takes what the first task left behind, though there are more tasks; the third task is not kept
    waiting by what they left."""
    behind, order = Behind(), list[str]()
    first_is_behind, third_has_begun = threading.Event(), threading.Event()

    def left(name: str) -> None:
        order.append(f"behind {name}")
        if name == "0":
            first_is_behind.set()
            assert third_has_begun.wait(SECONDS)  # both threads here, and this would never come

    def task(number: int) -> None:
        if number == 1:
            assert first_is_behind.wait(SECONDS)  # still at work when the first has left something
        order.append(f"task {number}")
        if number == 2:
            third_has_begun.set()
        behind.add(partial(left, str(number)))

    workers.run([partial(task, number) for number in range(3)], 2, Running(), behind=behind)
    assert order[:2] == ["task 0", "behind 0"]
    assert order.index("task 2") < order.index("behind 1")


def test_a_single_thread_does_at_once_what_is_left_behind() -> None:
    """While what the task has read is in memory."""
    behind, order = Behind(), list[str]()

    def task(number: int) -> None:
        order.append(f"task {number}")
        behind.add(lambda: order.append(f"behind {number}"))

    workers.run([partial(task, number) for number in range(3)], 1, Running(), behind=behind)
    assert order == ["task 0", "behind 0", "task 1", "behind 1", "task 2", "behind 2"]


def test_what_is_left_behind_by_one_task_is_shared_out() -> None:
    together = threading.Barrier(3, timeout=SECONDS)
    behind = Behind()

    def left() -> None:
        together.wait()

    def task() -> None:
        for _ in range(3):
            behind.add(left)

    workers.run([task], 3, Running(), behind=behind)
    assert not together.broken


@pytest.mark.parametrize("where", ["task", "behind"])
def test_the_first_error_ends_it(where: str) -> None:
    behind, begun, running, never = Behind(), count(), Running(), threading.Event()

    def fail() -> None:
        raise LookupError(where)

    def task() -> None:
        number = next(begun)
        if number == 1 and where == "task":
            fail()
        if number == 1:
            behind.add(fail)
        while number > 1 and not running.stopped:  # as a program that runs until it is ended
            never.wait(0.01)

    with pytest.raises(LookupError, match=where):
        workers.run([task] * 100, 2, running, behind=behind)
    assert running.stopped
    assert next(begun) <= 4


def test_tasks_that_somebody_else_ended_fail() -> None:
    running, started = Running(), threading.Event()

    class Ended(Exception):  # noqa: N818
        """As of a program that was killed."""

    def task() -> None:
        started.set()
        while not running.stopped:
            started.wait(0.01)
        raise Ended

    def watch() -> None:
        assert started.wait(SECONDS)
        running.stop()

    watching = threading.Thread(target=watch)
    watching.start()
    with pytest.raises(Ended):
        workers.run([task] * 3, 2, running)
    watching.join()


def test_what_is_all_done_counts_whoever_stops_the_rest() -> None:
    """A backup whose last bytes are on their way when a watch gives up on it: it is whole."""
    running, both = Running(), threading.Barrier(2, timeout=SECONDS)

    def task(number: int) -> int:
        both.wait()
        if number == 1:
            running.stop()
        both.wait()
        return number

    assert workers.run([partial(task, number) for number in range(2)], 2, running) == ([0, 1], None)


def test_an_error_beside_is_told_before_what_was_not_begun() -> None:
    running, begun = Running(), threading.Event()

    def task() -> None:
        begun.set()
        while not running.stopped:
            time.sleep(0.001)

    def beside() -> None:
        assert begun.wait(SECONDS)
        running.stop()
        raise LookupError

    with pytest.raises(LookupError):
        workers.run([task] * 3, 1, running, beside=beside)


def test_no_tasks() -> None:
    assert workers.run(list[partial[None]](), 2, Running(), beside=lambda: 7) == ([], 7)
