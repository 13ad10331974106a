"""What is fetched from one peer: which questions there are, and what comes of the answers."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

from zfast import arena
from zfast.errors import ConfigError, ProtocolError, ResultLostError, ZfastError
from zfast.runner.control import ControlMessage
from zfast.runner.data_protocol import CHUNK_NBYTES, Ask, Missing, Piece
from zfast.runner.data_room import Room
from zfast.sharing.descriptor import Descriptor

#: What became of a fetch: its bytes, or what went wrong.
Outcome: TypeAlias = "arena.Block | ZfastError"
#: Told what became of a fetch.
Done: TypeAlias = Callable[[Outcome], None]


@dataclass(eq=False, slots=True)
class Fetch:
    """What is being fetched; ``asked`` and ``taken`` count its bytes."""

    descriptor: Descriptor
    done: Done
    room: Future[arena.Block] | None = None
    asked: int = 0
    taken: int = 0


@dataclass(eq=False, slots=True)
class Question:
    """A part of a fetch, and whether it has been asked for on the connection that there is."""

    fetch: Fetch
    ask: Ask
    is_sent: bool = False


class Fetches:
    """One peer's fetches, one after the other. Threads: one.

    A fetch begins when all of the one before it has been asked for. A peer answers in the order in
    which it is asked, so that a question which a later one has overtaken was dropped.

    Args:
        endpoint: The peer's, for what is said of it.
        room: Where what is fetched is put.

    Attributes:
        questions: That have no answer yet: by request id, those that are sent in that order.
    """

    def __init__(self, endpoint: str, room: Room) -> None:
        self._endpoint = endpoint
        self._room = room
        self._fetches: dict[Descriptor, Fetch] = {}
        self._ended: deque[tuple[Fetch, Outcome]] = deque()
        self._numbers = itertools.count(1)
        self.questions: dict[int, Question] = {}

    def __len__(self) -> int:
        """How many have not ended."""
        return len(self._fetches)

    def add(self, descriptor: Descriptor, done: Done) -> None:
        """Begin one; see ``DataClient.fetch``."""
        descriptor.check()
        if descriptor in self._fetches:
            raise ConfigError(f"{descriptor} is being fetched already")
        self._fetches[descriptor] = Fetch(descriptor, done)

    def cancel(self, descriptor: Descriptor) -> None:
        """Forget one; nothing happens if there is none."""
        fetch = self._fetches.pop(descriptor, None)
        if fetch is not None:
            self._forget_questions(fetch)
        self._ended = deque(ended for ended in self._ended if ended[0].descriptor != descriptor)

    def clear(self) -> None:
        """Forget all."""
        self._fetches.clear()
        self._ended.clear()
        self.questions.clear()

    def next_question(self) -> int | None:
        """The number of a new question; None if there is none, or no room for its answer yet."""
        while (fetch := self._next_fetch()) is not None:
            descriptor, offset = fetch.descriptor, fetch.asked
            if fetch.room is None:
                fetch.room = self._room.make(descriptor.nbytes)
            if not fetch.room.done():
                return None
            error = fetch.room.exception()
            if isinstance(error, ZfastError):
                self._end(fetch, error)
                continue
            nbytes = min(CHUNK_NBYTES, descriptor.nbytes - offset)
            fetch.asked += nbytes
            number = next(self._numbers)
            self.questions[number] = Question(fetch, Ask(descriptor, offset, nbytes))
            return number
        return None

    def mark_sent(self, number: int) -> None:
        """A question was sent, after all others that are."""
        question = self.questions.pop(number)
        question.is_sent = True
        self.questions[number] = question

    def mark_all_unsent(self) -> None:
        """What was sent is lost, or may be."""
        for question in self.questions.values():
            question.is_sent = False

    def take(self, number: int, answer: ControlMessage, buffers: list[memoryview]) -> bool:
        """Take an answer; False if it answers no question: a second one, or one come too late."""
        if number not in self.questions:
            return False
        for earlier, overtaken in self.questions.items():
            if earlier == number:
                break
            overtaken.is_sent = False
        question = self.questions.pop(number)
        fetch, ask = question.fetch, question.ask
        if isinstance(answer, Missing):
            self._end(fetch, ResultLostError(f"{self._endpoint} has no {fetch.descriptor}"))
        elif isinstance(answer, Piece) and [buffer.nbytes for buffer in buffers] == [ask.nbytes]:
            assert fetch.room is not None
            block = fetch.room.result()
            memoryview(block)[ask.offset : ask.offset + ask.nbytes] = buffers[0]
            fetch.taken += ask.nbytes
            if fetch.taken == fetch.descriptor.nbytes:
                self._end(fetch, block)
        else:
            self._end(fetch, ProtocolError(f"{self._endpoint} sent what was not asked for"))
        return True

    def give_up(self, error: ZfastError) -> None:
        """End all."""
        for fetch in list(self._fetches.values()):
            self._end(fetch, error)

    def tell_ended(self) -> None:
        """Say what has become of those that have ended."""
        while self._ended:
            fetch, outcome = self._ended.popleft()
            fetch.done(outcome)

    def _next_fetch(self) -> Fetch | None:
        """The first that has not been asked for as a whole: few before it are not whole yet."""
        for fetch in self._fetches.values():
            if fetch.asked < fetch.descriptor.nbytes:
                return fetch
        return None

    def _end(self, fetch: Fetch, outcome: Outcome) -> None:
        if isinstance(outcome, ZfastError):
            outcome = outcome.with_traceback(None)  # which would keep frames, and blocks in them
        del self._fetches[fetch.descriptor]
        self._forget_questions(fetch)
        self._ended.append((fetch, outcome))

    def _forget_questions(self, fetch: Fetch) -> None:
        for number, question in list(self.questions.items()):
            if question.fetch is fetch:
                del self.questions[number]
