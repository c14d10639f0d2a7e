import threading
import time

import numpy as np
import pytest

from codiemb.clients.results import EmbeddingRequestError, PartialEmbeddings
from codiemb.clients.sending import RateLimiter, RequestFailed, Sender


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Unlimited:
    """Counts who asks, and lets all go at once."""

    def __init__(self):
        self.asked = 0

    def reserve(self):
        self.asked += 1
        return 0.0


def sender(**options):
    options = {"requests_per_second": 1e6, "concurrency": 1, "max_attempts": 3, "backoff": 0.001} | options
    return Sender(**options)


def nothing(_count):
    pass


def numbered(count):
    return [[f"text {index}"] for index in range(count)]


def test_the_limiter_spaces_requests_and_forgets_what_was_not_used():
    clock = Clock()
    limiter = RateLimiter(4, clock)
    assert [limiter.reserve() for _ in range(3)] == pytest.approx([0, 0.25, 0.5])
    clock.now += 0.6  # the next moment is 0.75 after the first
    assert limiter.reserve() == pytest.approx(0.15)
    clock.now += 60  # a minute without requests is no licence for a burst
    assert [limiter.reserve() for _ in range(2)] == pytest.approx([0, 0.25])


def test_no_second_has_more_requests_than_the_rate_whatever_the_threads_do():
    limiter = RateLimiter(50, Clock())
    moments = []

    def ask():
        moments.extend(limiter.reserve() for _ in range(40))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(sorted(moments), np.arange(320) / 50, atol=1e-9)


def test_the_sender_waits_for_the_limiter():
    moments = []

    def request(batch):
        moments.append(time.monotonic())
        return [np.ones(1)]

    sender(requests_per_second=100, concurrency=4).send(numbered(11), request, nothing)
    assert max(moments) - min(moments) >= 0.09  # eleven requests are ten intervals of 0.01 s


def test_retries_go_through_the_limiter_too():
    subject, limiter, attempts = sender(), Unlimited(), []
    subject.limiter = limiter

    def request(batch):
        attempts.append(batch)
        if len(attempts) < 3:
            raise RequestFailed("throttled", transient=True)
        return [np.ones(2)]

    (outcome,) = subject.send(numbered(1), request, nothing)
    assert outcome.tolist() == [1, 1]
    assert len(attempts) == limiter.asked == 3


def test_waits_double_and_have_a_random_part_up_to_a_bound():
    waits = sender(backoff=4)._retrying(threading.Event()).wait

    class State:
        attempt_number = 1

    drawn = {}
    for State.attempt_number in (1, 2, 3, 9):
        drawn[State.attempt_number] = [waits(State) for _ in range(50)]
    for attempt, base in {1: 4, 2: 8, 3: 16, 9: 30}.items():
        assert min(drawn[attempt]) >= base
        assert max(drawn[attempt]) <= base + 4
        assert len(set(drawn[attempt])) > 1


def test_what_cannot_pass_is_not_tried_again():
    attempts = []

    def request(batch):
        attempts.append(batch)
        raise RequestFailed("no such model")

    assert sender().send(numbered(1), request, nothing) == ["no such model"]
    assert len(attempts) == 1


def test_order_is_kept_whatever_comes_first():
    def request(batch):
        numbers = [int(text.split()[1]) for text in batch]
        time.sleep(0.02 if numbers[0] % 3 == 0 else 0)
        return [np.array([number]) for number in numbers]

    batches = [[f"text {2 * index}", f"text {2 * index + 1}"] for index in range(12)]
    seen = []
    outcomes = sender(concurrency=6).send(batches, request, seen.append)
    assert np.concatenate(outcomes).tolist() == list(range(24))
    assert sum(seen) == 24


def test_three_failures_in_a_row_end_the_job_and_single_ones_do_not():
    sent = []

    def fails(numbers):
        def request(batch):
            number = int(batch[0].split()[1])
            sent.append(number)
            time.sleep(0.005)  # else requests would end faster than their outcomes are counted
            if number in numbers:
                raise RequestFailed("refused")
            return [np.full(1, number)]

        return request

    outcomes = sender().send(numbered(9), fails({1, 2, 4, 5, 7}), nothing)
    assert [isinstance(one, str) for one in outcomes] == [False, True, True, False, True, True, False, True, False]
    sent.clear()
    outcomes = sender().send(numbered(40), fails(range(2, 40)), nothing)
    assert sent[:5] == [0, 1, 2, 3, 4]
    assert len(sent) <= 6  # one may have been taken up while the third failure was counted
    assert outcomes[4] == "refused"
    assert "given up" in outcomes[39]


def test_an_interrupt_sends_no_more():
    sent = []

    def request(batch):
        sent.append(batch)
        time.sleep(0.005)
        return [np.ones(1)]

    def interrupt(_count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sender(concurrency=2).send(numbered(500), request, interrupt)
    assert len(sent) < 20


def test_an_unexpected_error_is_not_taken_for_a_failed_request():
    def request(batch):
        raise AssertionError("a bug")

    with pytest.raises(AssertionError, match="a bug"):
        sender().send(numbered(3), request, nothing)


@pytest.mark.parametrize(
    "options", [{"requests_per_second": 0}, {"concurrency": 0}, {"max_attempts": 0}, {"backoff": -1}], ids=str
)
def test_arguments_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        sender(**options)


def test_partial_embeddings_say_which_texts_failed():
    outcomes = [np.ones(2), "throttled", "throttled", np.zeros(2), "blank", "throttled"]
    partial = PartialEmbeddings.of(outcomes, 2)
    assert partial.received.tolist() == [True, False, False, True, False, False]
    assert np.isnan(partial.vectors).any(axis=1).tolist() == (~partial.received).tolist()
    assert partial.failures == {1: "throttled", 2: "throttled", 4: "blank", 5: "throttled"}
    assert partial.describe_failures() == "4 of 6 texts have no vector. 1-2: throttled; 4: blank; 5: throttled"
    many = PartialEmbeddings.of([str(index) for index in range(9)], 0)
    assert many.describe_failures().endswith("4: 4; and 4 more")
    assert many.vectors.shape == (9, 0)
    assert "partial.vectors" in str(EmbeddingRequestError(partial))
