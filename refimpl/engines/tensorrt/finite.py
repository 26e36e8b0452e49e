"""Whether tensors on the GPU are finite, looked at there.

Most islands are for finite values only (:attr:`refimpl.bundle.IslandRecord.finite_only`), and copying every tensor to
the host to look at it would cost more than many engines. Two small kernels look where the tensors are. They are written
in PTX, the driver's own portable assembly, which it compiles for the GPU at hand: no CUDA toolkit is needed. Like
engines they are proven where they run, and not used when they do not see what was planted.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from refimpl.engines.tensorrt.cuda import Device
from refimpl.errors import RunError

_THREADS, _MOST_BLOCKS = 256, 1024  # of a launch: each thread takes every (threads * blocks)th element
# By dtype: the bits of the exponent, which are all set in an infinity and in a NaN, and only there.
_EXPONENT = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}
_SIZES = (4, 2)  # of the elements that there are kernels for

# data: address of the first element; count: how many; flag: becomes 1 when an element has all bits of the mask.
_KERNEL = """
.visible .entry nonfinite{bits}(.param .u64 data, .param .u64 count, .param .u32 mask, .param .u64 flag)
{{
    .reg .pred %end, %found;
    .reg .b32 %threads, %block, %thread, %blocks, %mask, %value, %one;
    .reg .b64 %index, %count, %step, %data, %at, %flag;
    ld.param.u64 %data, [data];
    ld.param.u64 %count, [count];
    ld.param.u32 %mask, [mask];
    ld.param.u64 %flag, [flag];
    cvta.to.global.u64 %data, %data;
    cvta.to.global.u64 %flag, %flag;
    mov.u32 %threads, %ntid.x;
    mov.u32 %block, %ctaid.x;
    mov.u32 %thread, %tid.x;
    mov.u32 %blocks, %nctaid.x;
    mov.u32 %one, 1;
    cvt.u64.u32 %index, %thread;
    mad.wide.u32 %index, %block, %threads, %index;
    mul.wide.u32 %step, %blocks, %threads;
again:
    setp.ge.u64 %end, %index, %count;
    @%end bra done;
    mad.lo.u64 %at, %index, {size}, %data;
    ld.global.u{bits} %value, [%at];
    and.b32 %value, %value, %mask;
    setp.eq.u32 %found, %value, %mask;
    @%found st.global.u32 [%flag], %one;
    add.u64 %index, %index, %step;
    bra again;
done:
    ret;
}}
"""
PTX = ".version 6.3\n.target sm_75\n.address_size 64\n" + "".join(
    _KERNEL.format(bits=8 * size, size=size) for size in _SIZES
)


class Looker:
    """The kernels on one GPU.

    Attributes:
        problem: why they cannot be used there; "" when they can.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._kernels: dict[int, int] = {}
        try:
            module = device.load_kernels(PTX.encode())
            self._kernels = {size: device.kernel(module, f"nonfinite{8 * size}") for size in _SIZES}
            self.problem = self._proven()
        except RunError as error:
            self.problem = error.message

    def look(self, address: int, count: int, dtype: np.dtype[Any], flag: int, stream: int) -> None:
        """Enqueue a look at a tensor.

        Args:
            address: of its first element, on the GPU.
            count: of its elements.
            dtype: of its elements; what is not of floats is finite.
            flag: address of 32 bits on the GPU, which become 1 when an element is a NaN or an infinity.
            stream: the order.
        """
        if not count or dtype.kind in "biu":
            return
        blocks = min(-(-count // _THREADS), _MOST_BLOCKS)
        mask = ctypes.c_uint32(_EXPONENT[dtype.name])
        arguments = (ctypes.c_uint64(address), ctypes.c_uint64(count), mask, ctypes.c_uint64(flag))
        self._device.launch_kernel(self._kernels[dtype.itemsize], (blocks, _THREADS), arguments, stream)

    def _proven(self) -> str:
        """Why they are wrong on this GPU: each looks at a tensor that is finite, and at three that are not."""
        for dtype in (np.dtype(np.float32), np.dtype(np.float16)):
            values = np.full(_THREADS * _MOST_BLOCKS + 3, np.finfo(dtype).max, dtype)  # some threads look twice
            values[::2] = -np.finfo(dtype).tiny
            if self._sees(values):
                return f"a kernel sees what is not finite in a tensor of {dtype} that is finite"
            for index, special in ((0, np.inf), (len(values) // 2, -np.inf), (-1, np.nan)):
                spoiled = values.copy()
                spoiled[index] = special
                if not self._sees(spoiled):
                    return f"a kernel does not see {special} in a tensor of {dtype}"
        return ""

    def _sees(self, values: np.ndarray[Any, Any]) -> bool:
        device, flag = self._device, np.zeros(1, np.uint32)
        stream, block = device.new_stream(), 0
        try:
            behind = -(-values.nbytes // 16) * 16
            block = device.allocate(behind + flag.nbytes)
            at = block + behind
            device.to_device(block, values.ctypes.data, values.nbytes, stream)
            device.fill(at, 0, 1, stream)
            self.look(block, values.size, values.dtype, at, stream)
            device.to_host(flag.ctypes.data, at, flag.nbytes, stream)
            device.synchronize(stream)
        finally:
            if block:
                device.free(block)
            device.destroy_stream(stream)
        return bool(flag[0])


@functools.cache
def looker(device: Device) -> Looker:
    """The kernels of a GPU, loaded once."""
    return Looker(device)
