"""Threads that each compute with one thread of torch.

A BLAS or a convolution may split a sum over its threads, and the split changes the rounding. Here
whole items go to threads and torch computes every item with one, so the number of threads cannot
reach a result. It cannot reach those of the C++ kernels, which take the threads that are left where
there are fewer items.
"""

from __future__ import annotations

import contextvars
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import ContextVar

import torch

_share: ContextVar[int] = ContextVar("lipvae_share", default=0)

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def _forget_pools() -> None:
    # A forked child inherits the pools without their threads, and the lock in any state.
    global _lock
    _pools.clear()
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)


def _pool(size: int) -> ThreadPoolExecutor:
    """A lasting pool: torch keeps buffers for every thread that it has ever seen."""
    with _lock:
        if size not in _pools:
            threads = torch.get_num_threads()
            started = threading.Barrier(size + 1)

            def start() -> None:
                # A thread takes over the process's number at its first question, so ask first.
                torch.get_num_threads()
                torch.set_num_threads(1)  # for this thread, and for those yet to come
                started.wait()

            pool = ThreadPoolExecutor(size, thread_name_prefix="lipvae")
            try:
                for _ in range(size):
                    pool.submit(start)
                started.wait()
            except BaseException:  # a thread may not start; the others would wait for it for ever
                started.abort()
                pool.shutdown(wait=False)
                raise
            finally:
                torch.set_num_threads(threads)
            _pools[size] = pool
        return _pools[size]


def kernel_threads() -> int:
    """The threads that a C++ kernel may use here: torch's number, or a worker's share of it."""
    return _share.get() or torch.get_num_threads()


def for_each(count: int, work: Callable[[int], None]) -> None:
    """Calls ``work(0)`` to ``work(count - 1)``, each with torch at one thread.

    As many calls run at once as torch has threads; if there are fewer, their C++ kernels share
    the others. Calls see the context variables of the caller. The first error stops what has not
    begun and is raised.

    Args:
        count: number of calls.
        work: must be safe to call from several threads at once.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        for i in range(count):
            work(i)
        return
    following = itertools.count()
    stop = threading.Event()

    def take() -> None:
        _share.set(max(1, threads // count))
        try:
            while not stop.is_set() and (i := next(following)) < count:
                work(i)
        except BaseException:
            stop.set()
            raise

    pool = _pool(threads)
    futures = [
        pool.submit(contextvars.copy_context().run, take) for _ in range(min(threads, count))
    ]
    try:
        wait(futures)
    finally:
        stop.set()
        wait(futures)
    for future in futures:
        future.result()
