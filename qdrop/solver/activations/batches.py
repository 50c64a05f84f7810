"""A unit's data, batch by batch: gathered from wherever it is kept, ahead of the step if that takes time."""

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from qdrop.solver.activations.cache import Pair, Separate, Value, pieces
from qdrop.solver.activations.stored import Stored

AHEAD = 2
"""Batches on their way while a step runs."""


@dataclass(frozen=True)
class Batch:
    """Rows of a unit's data, `[B, ...]` each, in float32 on the device that computes."""

    full: tuple[Tensor, ...]
    """Its inputs in the full-precision network."""
    quantized: tuple[Tensor, ...]
    """Its inputs in the quantized network; the same tensors as in `full` where the two are one."""
    target: tuple[Tensor, ...]
    """Outputs of the full-precision unit."""
    beside: tuple[Tensor, ...] = ()
    """What the objective needs beside these."""

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return *self.full, *self.quantized, *self.target, *self.beside


Coming = tuple[Batch, torch.cuda.Event | None]
"""A batch, and the event after which it is there (None: it is)."""


class Batches:
    """A unit's inputs and targets for all calibration images.

    Args:
        inputs: Its inputs in both networks, `[N, ...]` each.
        targets: Its full-precision outputs, `[N, ...]` each.
        device: Where is computed.
        beside: What the objective needs beside these, `[N, ...]` each.
    """

    def __init__(
        self, inputs: Sequence[Pair], targets: Sequence[Value], device: torch.device, beside: Sequence[Value] = ()
    ) -> None:
        self._full = [_stored(pair.full) for pair in inputs]
        self._quantized = [
            full if pair.quantized is pair.full else _stored(pair.quantized)
            for pair, full in zip(inputs, self._full, strict=True)
        ]
        self._targets = [_stored(target) for target in targets]
        self._beside = [_stored(value) for value in beside]
        self._values = (*self._full, *self._quantized, *self._targets, *self._beside)
        self._device = device
        # A side stream copies to the GPU while the step computes.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __len__(self) -> int:
        """Number of images N."""
        return len(self._values[-1])

    def gather(self, rows: Tensor, rooms: Mapping[Stored, Tensor] | None = None) -> Batch:
        """The rows with these numbers `[B]`.

        Args:
            rows: Row numbers.
            rooms: Where those of each value are put, as :meth:`_rooms` makes them; None: in new memory.
        """
        rooms = self._rooms(len(rows)) if rooms is None else rooms
        found = {value: self._read(value, rows, room) for value, room in rooms.items()}
        groups = (self._full, self._quantized, self._targets, self._beside)
        return Batch(*(tuple(found[value] for value in values) for values in groups))

    def _rooms(self, count: int) -> dict[Stored, Tensor]:
        """Memory for `count` rows of each value; page-locked where a GPU fetches them from there."""
        return {value: value.room(count, pin=self._stream is not None) for value in self._values}

    def stream(self, draws: Tensor) -> Generator[Batch, None, None]:
        """:meth:`gather` of each row of `draws`, two batches ahead where values have to be brought.

        Args:
            draws: Row numbers `[T, B]`, on the CPU.
        """
        if all(value.place != "disk" and value.device == self._device for value in self._values):
            yield from map(self.gather, draws.to(self._device))
            return
        if self._stream is not None:  # values on the GPU were written by the step's stream
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        waiting: deque[Future[Coming]] = deque()
        steps: deque[torch.cuda.Event] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            try:
                for rows in draws:
                    # A CPU's memory is allocated here: what another thread has freed, the C library keeps for that one.
                    rooms = self._rooms(len(rows)) if self._stream is None else None
                    waiting.append(pool.submit(self._fetch, rows, rooms))
                    if len(waiting) > AHEAD:
                        yield self._arrived(waiting.popleft().result())
                        self._keep_pace(steps)
                while waiting:
                    yield self._arrived(waiting.popleft().result())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _keep_pace(self, steps: "deque[torch.cuda.Event]") -> None:
        """Wait until the GPU is only `AHEAD` steps behind, else the batches of all the others would wait in its memory.

        Args:
            steps: An event behind each step that it may still be at; the one just submitted is added.
        """
        if self._stream is None:
            return
        steps.append(torch.cuda.current_stream(self._device).record_event())
        if len(steps) > AHEAD:
            steps.popleft().synchronize()

    def _fetch(self, rows: Tensor, rooms: Mapping[Stored, Tensor] | None) -> Coming:
        """:meth:`gather` beside the step; on a GPU what it returns is still on its way."""
        if self._stream is None:
            return self.gather(rows, rooms), None
        with torch.cuda.stream(self._stream):
            return self.gather(rows), self._stream.record_event()

    def _arrived(self, coming: Coming) -> Batch:
        """A fetched batch that the step's stream may use."""
        batch, event = coming
        if event is not None:
            step = torch.cuda.current_stream(self._device)
            step.wait_event(event)
            for tensor in batch.tensors():
                tensor.record_stream(step)  # so that its memory is not given away before the step is done
        return batch

    def _read(self, value: Stored, rows: Tensor, room: Tensor) -> Tensor:
        """Rows in their own type on the device: transferred as they are stored, converted there."""
        found = value.read(rows, room)
        # Towards a GPU alone: a copy from one to main memory would be read before it is there.
        return found.to(self._device, non_blocking=self._stream is not None).to(value.dtype)


class SeparateBatches:
    """As :class:`Batches`, for values in batches of their own size: one of them is drawn at a time.

    Args:
        inputs: The unit's inputs in both networks.
        targets: Its full-precision outputs.
        device: Where is computed.
        beside: What the objective needs beside these.
    """

    def __init__(
        self, inputs: Sequence[Pair], targets: Sequence[Value], device: torch.device, beside: Sequence[Value] = ()
    ) -> None:
        full, quantized = pieces([pair.full for pair in inputs]), pieces([pair.quantized for pair in inputs])
        each = zip(full, quantized, pieces(targets), pieces(beside) if beside else [()] * len(full), strict=True)
        self._each = [
            Batches([Pair(f, q) for f, q in zip(of_full, of_quantized, strict=True)], of_targets, device, of_beside)
            for of_full, of_quantized, of_targets, of_beside in each
        ]

    def stream(self, draws: Tensor) -> Generator[Batch, None, None]:
        """The batches with these numbers, all of their rows.

        Args:
            draws: `[T, 1]`, on the CPU.
        """
        for number in draws.flatten().tolist():
            batch = self._each[number]
            yield batch.gather(torch.arange(len(batch)))


def batches_of(
    inputs: Sequence[Pair], targets: Sequence[Value], device: torch.device, beside: Sequence[Value] = ()
) -> Batches | SeparateBatches:
    """A unit's data by batches; arguments as of :class:`Batches`."""
    kind = SeparateBatches if any(isinstance(target, Separate) for target in targets) else Batches
    return kind(inputs, targets, device, beside)


def _stored(value: Value) -> Stored:
    if isinstance(value, Separate):
        raise TypeError("values in separate batches are drawn by SeparateBatches")
    return value if isinstance(value, Stored) else Stored(value, value.dtype)
