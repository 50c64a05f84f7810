"""Pieces of work on several threads, each piece on one of them from beginning to end.

PyTorch spreads every single operation over all threads, and each time waits for the last of them. A quantizer is a
dozen short operations: where another program holds one core, every one of them waits for it. Here a thread works on a
piece for all operations, and then takes the next piece; whoever is kept from running leaves its pieces to the others.
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any

import torch


def side_by_side(work: Callable[..., None], pieces: Iterable[tuple[Any, ...]]) -> None:
    """Call `work(*piece)` for each piece, on as many threads as torch computes with.

    Args:
        work: Computes with tensors and carries no gradient; calls may be in any order and at the same time.
        pieces: Arguments of the calls.
    """
    todo, threads = deque(pieces), torch.get_num_threads()
    if threads == 1:
        return _take(work, todo)
    helpers = [_helpers(threads - 1).submit(_help, work, todo) for _ in range(min(threads, len(todo)) - 1)]
    torch.set_num_threads(1)
    try:
        _take(work, todo)
    finally:
        todo.clear()
        torch.set_num_threads(threads)
        for helper in helpers:
            if not helper.cancel():  # one that has not begun need not
                helper.result()


def _take(work: Callable[..., None], todo: deque[tuple[Any, ...]]) -> None:
    """Work on one piece after the other while there are any."""
    while True:
        try:
            piece = todo.popleft()
        except IndexError:
            return
        work(*piece)


@torch.inference_mode()
def _help(work: Callable[..., None], todo: deque[tuple[Any, ...]]) -> None:
    """:func:`_take` on another thread: what is recorded for gradients is a matter of each thread, as is inference."""
    _take(work, todo)


@cache
def _helpers(count: int) -> ThreadPoolExecutor:
    """So many threads that wait asleep for work, each of which computes alone."""
    threads, all_there = torch.get_num_threads(), Barrier(count)

    def compute_alone() -> None:
        torch.get_num_threads()  # a thread's first question takes over the number set last, which must not come later
        torch.set_num_threads(1)
        all_there.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="quantizer", initializer=compute_alone)
    for ready in [pool.submit(int) for _ in range(count)]:
        ready.result()
    torch.set_num_threads(threads)  # a thread's own number, but a new thread takes over the one that was set last
    return pool
