"""Socket filters: programs of classic BPF by which the kernel drops what a socket need not see, before its owner is woken.

Opcodes: ``linux/filter.h``, ``linux/bpf_common.h``. A program is a tuple of instructions (opcode, jump if true, jump if false,
constant); jumps count instructions from the next one.
"""

import array
import socket
import struct

__all__ = [
    "ACCEPT_ALL",
    "ADD_CONSTANT",
    "ADD_X",
    "AND_CONSTANT",
    "IF_ANY_BIT",
    "IF_AT_LEAST_X",
    "IF_EQUAL",
    "LOAD_BYTE",
    "LOAD_BYTE_X",
    "LOAD_CONSTANT",
    "LOAD_HALF",
    "LOAD_HALF_X",
    "LOAD_X_HEADER",
    "LOAD_X_LENGTH",
    "LOAD_X_MEMORY",
    "RETURN",
    "SHIFT_LEFT",
    "STORE",
    "Instruction",
    "attach_filter",
]

Instruction = tuple[int, int, int, int]

LOAD_CONSTANT = 0x00  # into the register A
LOAD_BYTE, LOAD_HALF = 0x30, 0x28  # of the packet, at a constant offset
LOAD_BYTE_X, LOAD_HALF_X = 0x50, 0x48  # of the packet, at the register X and a constant
LOAD_X_MEMORY, LOAD_X_LENGTH = 0x61, 0x81  # into X: a cell of memory, the packet's length
LOAD_X_HEADER = 0xB1  # into X: the length of the IPv4 header at a constant offset
STORE = 0x02  # A into a cell of memory
ADD_CONSTANT, ADD_X, AND_CONSTANT, SHIFT_LEFT = 0x04, 0x0C, 0x54, 0x64  # on A
IF_EQUAL, IF_ANY_BIT, IF_AT_LEAST_X = 0x15, 0x45, 0x3D  # A against a constant; A at least X
RETURN = 0x06  # how many bytes of the packet to keep; 0 drops it
ACCEPT_ALL = 0xFFFFFFFF
_SO_ATTACH_FILTER = 26


def attach_filter(sock: socket.socket, program: tuple[Instruction, ...]) -> None:
    """Have the kernel run *program* on each packet for *sock*. Raises OSError."""
    code = array.array("B", b"".join(struct.pack("=HBBI", *line) for line in program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), code.buffer_info()[0]))
