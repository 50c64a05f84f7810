"""One value of all calibration images, wherever it is kept: rows of it are written and read in its own type."""

import mmap
from typing import Literal

import torch
from torch import Tensor

from qdrop.errors import QdropError
from qdrop.quantization.layout import in_memory_order
from qdrop.quantization.layout import memory_format as layout_of

Place = Literal["gpu", "cpu", "disk"]
Rows = slice | Tensor

PART = 1 << 26
"""Bytes moved at a time from one place to another."""


class CacheError(QdropError, RuntimeError):
    """Values that cannot be kept; says what to change."""


class Stored:
    """One value for all calibration images, `[N, ...]`, in some place and precision.

    Rows are written and read in the value's own type, whatever it is stored as. Other names for it stay valid
    when it moves.

    Args:
        tensor: What is stored, `[N, ...]`.
        dtype: The value's own type.
        file: The mapping that `tensor` lies in, if it is in a file.
    """

    def __init__(self, tensor: Tensor, dtype: torch.dtype, file: mmap.mmap | None = None) -> None:
        self._tensor, self._file = tensor, file
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self._tensor)

    @property
    def shape(self) -> torch.Size:
        """`[N, ...]`."""
        return self._tensor.shape

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return self._tensor.nbytes

    @property
    def device(self) -> torch.device:
        """Where rows are read from without a transfer."""
        return self._tensor.device

    @property
    def place(self) -> Place:
        """Where it is."""
        if self._file is not None:
            return "disk"
        return "cpu" if self._tensor.device.type == "cpu" else "gpu"

    def __getitem__(self, rows: Rows) -> Tensor:
        """Rows `[B, ...]`, of its own type, where it is. A slice may be a view: not to be written to."""
        return self.read(rows).to(self.dtype)

    def __setitem__(self, rows: slice, values: Tensor) -> None:
        """Write rows `[B, ...]`.

        Raises:
            CacheError: If a value is too large for the storage's type.
        """
        stored = values.to(self._tensor.dtype)
        if stored.dtype == torch.float16 and stored.isinf().any() and not values.isinf().any():
            raise CacheError(
                f"recon.cache.dtype = float16: a value of {values.abs().max():.3g} is beyond its 65504;"
                " use bfloat16 or float32"
            )
        self._tensor[rows] = stored
        self._release()

    def read(self, rows: Rows, room: Tensor | None = None) -> Tensor:
        """As indexing, but in the storage's type.

        Args:
            rows: A slice, or row numbers `[B]`.
            room: Where rows given by number are put, from :meth:`room`; None: in new memory.
        """
        if isinstance(rows, slice):
            found = self._tensor[rows]
            found = found if self._file is None else found.clone()
        else:
            found = self.room(len(rows)) if room is None else room
            # Along memory: selecting from channels-last values as they are takes ten times as long.
            source, target = (in_memory_order(t, self._tensor) for t in (self._tensor, found))
            torch.index_select(source, 0, rows.to(self.device), out=target)
        self._release()
        return found

    def room(self, count: int, pin: bool = False) -> Tensor:
        """Memory for `count` rows where they are, in the storage's type; `pin`: page-locked, if it is main memory."""
        return torch.empty(
            (count, *self.shape[1:]),
            dtype=self._tensor.dtype,
            device=self.device,
            memory_format=self.layout,
            pin_memory=pin and self.device.type == "cpu",
        )

    @property
    def layout(self) -> torch.memory_format:
        """How it lies in memory."""
        return layout_of(self._tensor)

    @property
    def stored_dtype(self) -> torch.dtype:
        """The type it is stored as."""
        return self._tensor.dtype

    def move(self, empty: "Stored") -> None:
        """Move into the place of another value of the same shape, which is used up."""
        rows = max(1, PART // max(1, self._tensor[0].nbytes))
        for start in range(0, len(self), rows):
            part = slice(start, start + rows)
            empty[part] = self.read(part)
        self._tensor, self._file = empty._tensor, empty._file

    def _release(self) -> None:
        """Pages of the file that were touched need not stay in memory; the system keeps what it has room for."""
        if self._file is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on every platform
            self._file.madvise(mmap.MADV_DONTNEED)
